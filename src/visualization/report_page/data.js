"use strict";
// The arrays, what images and clusters are called, and pictures of single images. Names reach the document
// through textContent only.
const $ = (selector) => document.querySelector(selector);
const data = JSON.parse($("#data").textContent);
const TYPES = { f4: Float32Array, u4: Uint32Array, i4: Int32Array, u2: Uint16Array, i2: Int16Array, u1: Uint8Array };

function bytes(id) {
  const text = atob(document.getElementById(id).textContent);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}
const array = (id) => new TYPES[document.getElementById(id).dataset.type](bytes(id).buffer);

const xy = array("xy"), clusterOf = array("cluster"), label = array("label"), split = array("split"), near = array("near");
const distance = array("distance"), certainty = array("certainty"), pictured = array("pictured"), nearest = array("nearest");
const unusual = array("unusual"), keep = array("keep"), sharpness = array("sharpness");
const count = data.count, hasPictures = data.sheets > 0, hasLabels = label.some((l) => l >= 0);
const tileOf = new Int32Array(count).fill(-1); // the number of the tile that shows an image
pictured.forEach((image, place) => { tileOf[image] = place; });
const isWrong = (i) => label[i] >= 0 && data.classOfCluster[clusterOf[i]] !== label[i];
const nameOf = (i) => (data.names ? data.names[i] : `${data.splits[split[i]]}[${i - data.offsets[split[i]]}]`);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
const number = (n) => n.toLocaleString("en");

// ---- clusters ------------------------------------------------------------------------------------

// Clusters with one name are one group, which the number of its first cluster stands for.
let cluster = clusterOf; // the group of each image
let groups = []; // the clusters of each group; none where a cluster belongs to an earlier one
const nameOfCluster = (k) => data.givenNames[k] || (data.classes[data.classOfCluster[k]] ?? "");

function mergeNames() {
  const first = new Map();
  const leaders = data.givenNames.map((_, k) => {
    const name = nameOfCluster(k);
    if (name && !first.has(name)) first.set(name, k);
    return name ? first.get(name) : k;
  });
  groups = leaders.map((_, g) => [...leaders.keys()].filter((k) => leaders[k] === g));
  cluster = clusterOf.map((k) => leaders[k]);
}
const shown = () => [...groups.keys()].filter((g) => groups[g].length); // the groups that there are
const short = (g) => [groups[g].join(" + "), nameOfCluster(g)].filter(Boolean).join(" → ");
const title = (g) => `cluster${groups[g].length > 1 ? "s" : ""} ${short(g)}`;

// ---- bytes that are not UTF-8 --------------------------------------------------------------------

// Python turns each into half of a surrogate pair, so file names may contain those.
const LONE = /([\udc80-\udcff])/u;
const withBytes = (text, lone, rest) => text.split(LONE).map((part) => (LONE.test(part) ? lone(part.charCodeAt(0) & 255) : rest(part)));
const linkTo = (i) => data.folder + withBytes(data.names[i], (byte) => `%${byte.toString(16)}`, encodeURIComponent).join("").replaceAll("%2F", "/");

function download(file, type, text) {
  const url = URL.createObjectURL(new Blob(withBytes(text, (byte) => Uint8Array.of(byte), (part) => part), { type }));
  make("a", { href: url, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// ---- pictures ------------------------------------------------------------------------------------

const sheets = [];
let sheetsLeft = data.sheets;
function loadSheets() { // after the first draw: decoding takes longer than everything else
  for (let s = 0; s < data.sheets; s++) {
    const image = new Image();
    image.onload = () => { sheets[s] = image; sheetsLeft--; waiting = waiting.filter((draw) => !draw()); request(); };
    image.src = URL.createObjectURL(new Blob([bytes(`sheet-${s}`)], { type: "image/webp" }));
  }
}
let waiting = []; // drawings to repeat once their sheet is decoded; true when done

function paint(context, i, x, y, size) {
  const place = tileOf[i], perSheet = data.columns ** 2, sheet = sheets[Math.floor(place / perSheet)];
  if (place < 0 || !sheet) return false;
  const at = place % perSheet, t = data.tile;
  context.drawImage(sheet, (at % data.columns) * t, Math.floor(at / data.columns) * t, t, t, x, y, size, size);
  return true;
}

function portrait(canvas, i) {
  canvas.hidden = !hasPictures || tileOf[i] < 0;
  if (canvas.hidden) return;
  canvas.width = canvas.height = data.tile;
  canvas.dataset.image = i;
  const draw = () => canvas.dataset.image !== String(i) || paint(canvas.getContext("2d"), i, 0, 0, data.tile);
  if (!draw()) waiting.push(draw);
}

function thumb(i) {
  const text = [nameOf(i), ...(label[i] < 0 ? [] : [`class ${data.classes[label[i]]}`]), title(cluster[i])].join(", ");
  const button = make("button", { type: "button", className: "thumb", title: text, tabIndex: -1, onclick: () => select(i, true) });
  button.dataset.image = i;
  button.setAttribute("aria-label", text);
  button.setAttribute("aria-current", i === selected);
  button.classList.toggle("wrong", isWrong(i));
  if (hasPictures && tileOf[i] >= 0) {
    const canvas = make("canvas");
    portrait(canvas, i);
    button.append(canvas);
  } else {
    button.classList.add("plain");
    button.append(nameOf(i));
  }
  return button;
}
function fill(grid, images) {
  grid.replaceChildren(...images.map(thumb));
  if (grid.firstChild) grid.firstChild.tabIndex = 0;
}

// One stop of the Tab key for all buttons of a grid or a table; the arrow keys move among them.
document.addEventListener("keydown", (event) => {
  const from = event.target.closest(".roving button"), stride = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!from || !stride) return;
  const all = [...from.closest(".roving").querySelectorAll("button:not(:disabled)")], to = all[all.indexOf(from) + stride];
  if (!to) return;
  event.preventDefault();
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
});
