"use strict";
// The arrays, what images are called, and pictures of single images. Names reach the document through
// textContent only.
const $ = (selector) => document.querySelector(selector);
const data = JSON.parse($("#data").textContent);
const TYPES = { f4: Float32Array, u4: Uint32Array, i4: Int32Array, u2: Uint16Array, u1: Uint8Array };

function bytes(id) {
  const text = atob(document.getElementById(id).textContent);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}
const array = (id) => new TYPES[document.getElementById(id).dataset.type](bytes(id).buffer);

const xy = array("xy"), clusterOf = array("cluster"), fineOf = array("fine"), label = array("label"), split = array("split");
const near = array("near"), distance = array("distance"), fineDistance = array("fine-distance"), certainty = array("certainty");
const unusual = array("unusual"), keep = array("keep"), sharpness = array("sharpness"), pictured = array("pictured"), nearest = array("nearest");
const count = data.count, hasPictures = data.sheets > 0, hasLabels = label.some((l) => l >= 0);
const tileOf = new Int32Array(count).fill(-1); // the number of the tile that shows an image
pictured.forEach((image, place) => { tileOf[image] = place; });
const isWrong = (i) => label[i] >= 0 && data.classOfCluster[clusterOf[i]] !== label[i];
// Of very many images the page has a sample; all of them are points on the map.
const isSample = Boolean(data.points), rowOfImage = isSample ? array("row") : null;
const point = isSample ? { ...data.points, xy: array("point-xy"), cluster: array("point-cluster"), fine: array("point-fine") } : { count: 0 };
const nameOf = (i) => (data.names ? data.names[i] : `${data.splits[split[i]]}[${(rowOfImage?.[i] ?? i) - data.offsets[split[i]]}]`);
const imageNamed = new Map(Array.from({ length: count }, (_, i) => [nameOf(i), i]));

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
const number = (n) => n.toLocaleString("en");
const many = (n, thing) => `${number(n)} ${thing}${n === 1 ? "" : "s"}`;
const timers = new Map();
function postpone(task) { // until nothing has changed for a moment: a slider moves freely
  clearTimeout(timers.get(task));
  timers.set(task, setTimeout(task, 50));
}
function tally(values) { // how often each value occurs
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

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
const inView = new IntersectionObserver((entries) => { // thousands of thumbnails are painted as one scrolls
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    inView.unobserve(target);
    portrait(target, Number(target.parentElement.dataset.image));
  }
}, { rootMargin: "300px" });

function thumb(i, withCertainty) {
  const text = [nameOf(i), ...(label[i] < 0 ? [] : [`class ${data.classes[label[i]]}`]), title(group[i])].join(", ");
  const button = make("button", { type: "button", className: "thumb", title: text, tabIndex: -1 });
  button.dataset.image = i;
  button.setAttribute("aria-label", text);
  button.setAttribute("aria-current", i === selected);
  button.setAttribute("aria-pressed", chosen.has(i));
  button.classList.toggle("wrong", isWrong(i));
  if (hasPictures && tileOf[i] >= 0) {
    const canvas = make("canvas");
    inView.observe(canvas);
    button.append(canvas);
  } else {
    button.classList.add("plain");
    button.append(nameOf(i));
  }
  if (withCertainty) button.append(make("small", { textContent: certainty[i].toFixed(2) }));
  return button;
}
function fill(grid, images, withCertainty = false) {
  const focused = grid.contains(document.activeElement) ? document.activeElement.dataset.image : null;
  grid.replaceChildren(...images.map((i) => thumb(i, withCertainty)));
  const first = grid.querySelector(`[data-image="${focused}"]`) ?? grid.firstChild;
  if (first) first.tabIndex = 0;
  if (focused) first?.focus();
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
