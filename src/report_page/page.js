"use strict";
// Everything on this page is text or pixels: names reach the document through textContent only.
const $ = (selector) => document.querySelector(selector);
const data = JSON.parse($("#data").textContent);
const TYPES = { f4: Float32Array, u4: Uint32Array, u2: Uint16Array, i2: Int16Array, u1: Uint8Array };

function bytes(id) {
  const text = atob(document.getElementById(id).textContent);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}
const array = (id) => new TYPES[document.getElementById(id).dataset.type](bytes(id).buffer);

const xy = array("xy"), cluster = array("cluster"), label = array("label"), split = array("split");
const distance = array("distance"), margin = array("margin"), shown = array("shown"), near = array("near");
const count = data.count, hasPictures = data.pictures > 0;
const tileOf = new Int32Array(count).fill(-1); // the place of an image among the pictures
shown.forEach((image, place) => { tileOf[image] = place; });
const isWrong = (i) => label[i] >= 0 && data.classOfCluster[cluster[i]] !== label[i];
const className = (c) => (c < 0 ? "unknown" : data.classes[c]);
const nameOf = (i) => (data.names ? data.names[i] : `${data.splits[split[i]]} ${i - data.offsets[split[i]]}`);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- pictures ---------------------------------------------------------------------------------

const sheets = [];
let sheetsLeft = data.sheets;
function loadSheets() { // after the first draw: decoding takes longer than all the rest
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
  const text = `${nameOf(i)}, class ${className(label[i])}, cluster ${data.clusters[cluster[i]]}`;
  const button = make("button", { type: "button", className: "thumb", title: text, onclick: () => select(i, true) });
  button.dataset.image = i;
  button.setAttribute("aria-label", text);
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

// ---- state ------------------------------------------------------------------------------------

const on = { cluster: new Set(data.clusters.keys()), label: new Set([-1, ...data.classes.keys()]), split: new Set(data.splits.keys()) };
let wrongOnly = false, selected = -1, hovered = -1;
let visible = new Uint8Array(count), visibleCount = 0;

function applyFilters() {
  visibleCount = 0;
  for (let i = 0; i < count; i++) {
    visible[i] = on.cluster.has(cluster[i]) && on.label.has(label[i]) && on.split.has(split[i]) && (!wrongOnly || isWrong(i));
    visibleCount += visible[i];
  }
  $("#shown-count").textContent = `${visibleCount.toLocaleString("en")} of ${count.toLocaleString("en")} images`;
  hovered = -1;
  $("#tip").hidden = true;
  fillGallery();
  fillCrossing();
  request();
}

// ---- map --------------------------------------------------------------------------------------

const map = $("#map"), context = map.getContext("2d");
let pixel = 1, wide = 1, high = 1; // device pixels
const extent = bounds();
let view = { x: 0, y: 0, scale: 1 }; // the middle in map units, and device pixels per unit

function bounds() {
  let [left, right, low, top] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < count; i++) {
    left = Math.min(left, xy[2 * i]); right = Math.max(right, xy[2 * i]);
    low = Math.min(low, xy[2 * i + 1]); top = Math.max(top, xy[2 * i + 1]);
  }
  return { x: (left + right) / 2, y: (low + top) / 2, wide: right - left || 1, high: top - low || 1 };
}
const fitScale = () => 0.94 * Math.min(wide / extent.wide, high / extent.high);
const screenX = (i) => (xy[2 * i] - view.x) * view.scale + wide / 2;
const screenY = (i) => (view.y - xy[2 * i + 1]) * view.scale + high / 2;

function resize() {
  const first = wide === 1, zoom = first ? 1 : view.scale / fitScale();
  pixel = Math.min(window.devicePixelRatio || 1, 2);
  wide = map.width = Math.max(1, Math.round(map.clientWidth * pixel));
  high = map.height = Math.max(1, Math.round(map.clientHeight * pixel));
  if (first) reset();
  view.scale = fitScale() * zoom;
  request();
}
function reset() { view = { x: extent.x, y: extent.y, scale: fitScale() }; request(); }
function zoomAt(x, y, factor) { // x and y stay where they are
  const scale = Math.min(Math.max(view.scale * factor, fitScale() / 2), fitScale() * 400);
  view.x += (x - wide / 2) * (1 / view.scale - 1 / scale);
  view.y -= (y - high / 2) * (1 / view.scale - 1 / scale);
  view.scale = scale;
  request();
}
const zoom = (factor) => zoomAt(wide / 2, high / 2, factor);
function pan(x, y) { view.x -= x / view.scale; view.y += y / view.scale; request(); }

let asked = false;
function request() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; draw(); });
}

const hex = (colour) => [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
function inks() { // in the dark, colours are mixed with white
  const by = $("#colour").value, dark = document.documentElement.dataset.theme === "dark";
  const list = { cluster: data.clusterColours, label: data.classColours, split: data.clusterColours }[by];
  const lift = (c) => hex(c).map((v) => (dark ? Math.round(v + 0.3 * (255 - v)) : v));
  return { of: { cluster, label, split }[by], list: list.map(lift), unknown: dark ? [85, 89, 95] : hex(data.unknownColour) };
}

function disc(radius) { // offsets and coverage of an antialiased disc
  const out = [], reach = Math.ceil(radius);
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
    const cover = Math.min(1, radius + 0.5 - Math.hypot(x, y));
    if (cover > 0.05) out.push([x, y, cover * 0.85]);
  }
  return out;
}

// Points go straight into the pixels: ten times faster than a path each, the same on any machine.
function draw() {
  const { of, list, unknown } = inks(), zoomed = view.scale / fitScale();
  const back = hex(getComputedStyle(document.documentElement).getPropertyValue("--stage").trim());
  const radius = Math.min(9, Math.max(0.7, Math.min(3.2, 210 / Math.sqrt(count))) * zoomed ** 0.35) * pixel;
  const image = context.createImageData(wide, high), pixels = image.data, stamp = disc(radius);
  new Uint32Array(pixels.buffer).fill((255 << 24) | (back[2] << 16) | (back[1] << 8) | back[0]);
  const inside = [], edge = Math.ceil(radius);
  for (const grey of [true, false]) for (let i = 0; i < count; i++) { // the unknown lie below
    if (!visible[i] || of[i] < 0 !== grey) continue;
    const x = Math.round(screenX(i)), y = Math.round(screenY(i));
    if (x < edge || y < edge || x >= wide - edge || y >= high - edge) continue;
    inside.push(i);
    const ink = grey ? unknown : list[of[i]];
    for (const [dx, dy, cover] of stamp) {
      const at = 4 * ((y + dy) * wide + x + dx);
      for (let k = 0; k < 3; k++) pixels[at + k] += (ink[k] - pixels[at + k]) * cover;
    }
  }
  context.putImageData(image, 0, 0);
  if (hasPictures && !sheetsLeft && zoomed > 2 && inside.length < 400) drawPictures(inside, of, list, unknown);
  else drawNames(of, list);
  for (const [i, width] of [[hovered, 2], [selected, 3]]) if (i >= 0) ring(i, radius + 3 * pixel, width);
}

function drawPictures(inside, of, list, unknown) {
  const size = Math.min(64, Math.max(26, 900 / Math.sqrt(inside.length + 1) / 2)) * pixel;
  for (const i of inside) {
    const x = screenX(i) - size / 2, y = screenY(i) - size / 2;
    context.fillStyle = `rgb(${of[i] < 0 ? unknown : list[of[i]]})`;
    if (tileOf[i] >= 0) context.fillRect(x - 2 * pixel, y - 2 * pixel, size + 4 * pixel, size + 4 * pixel);
    paint(context, i, x, y, size);
  }
}

const medians = {};
function middles(of, groups) { // the median of each group on the map
  const key = $("#colour").value;
  if (medians[key]) return medians[key];
  const members = Array.from({ length: groups }, () => []);
  for (let i = 0; i < count; i++) if (of[i] >= 0) members[of[i]].push(i);
  const median = (list, k) => list.map((i) => xy[2 * i + k]).sort((a, b) => a - b)[list.length >> 1];
  return (medians[key] = members.map((list) => [median(list, 0), median(list, 1)]));
}
function drawNames(of, list) {
  if (list.length > 40 || $("#colour").value === "split") return;
  const names = $("#colour").value === "cluster" ? data.clusters : data.classes, style = getComputedStyle(document.body);
  context.font = `600 ${12 * pixel}px ${style.fontFamily}`;
  context.textAlign = "center"; context.textBaseline = "middle"; context.lineJoin = "round";
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--stage");
  context.fillStyle = style.color; context.lineWidth = 3.5 * pixel;
  middles(of, list.length).forEach(([x, y], g) => {
    if (x === undefined || !visibleCount || !on[$("#colour").value].has(g)) return;
    const at = [(x - view.x) * view.scale + wide / 2, (view.y - y) * view.scale + high / 2];
    context.strokeText(names[g], ...at);
    context.fillText(names[g], ...at);
  });
}
function ring(i, radius, width) {
  context.beginPath();
  context.arc(screenX(i), screenY(i), radius, 0, 7);
  context.strokeStyle = getComputedStyle(document.body).color;
  context.lineWidth = width * pixel;
  context.stroke();
}

function nearestTo(x, y, reach) { // the visible image nearest to a place on the canvas
  let best = -1, least = reach * reach;
  for (let i = 0; i < count; i++) {
    if (!visible[i]) continue;
    const dx = screenX(i) - x, dy = screenY(i) - y, d = dx * dx + dy * dy;
    if (d < least) { least = d; best = i; }
  }
  return best;
}

// ---- selection, gallery, table ----------------------------------------------------------------

function hover(i, x = 0, y = 0) {
  if (i !== hovered) { hovered = i; request(); }
  const tip = $("#tip");
  tip.hidden = i < 0;
  if (i < 0) return;
  tip.dataset.image = i;
  portrait(tip.firstElementChild, i);
  const lines = [nameOf(i), `cluster ${data.clusters[cluster[i]]}`, `class ${className(label[i])}${isWrong(i) ? " (wrong)" : ""}`];
  if (hasPictures && tileOf[i] < 0) lines.push("its picture is not in this page");
  tip.lastElementChild.replaceChildren(...lines.map((line) => make("div", { textContent: line })));
  const right = x + 20 + tip.offsetWidth < map.clientWidth;
  tip.style.left = `${Math.max(0, right ? x + 14 : x - tip.offsetWidth - 14)}px`;
  tip.style.top = `${Math.max(0, Math.min(y + 14, map.clientHeight - tip.offsetHeight))}px`;
}

function select(i, show = false) {
  selected = i;
  $("#nothing").hidden = i >= 0;
  $("#detail").hidden = i < 0;
  request();
  if (i < 0) return;
  $("#detail").dataset.image = i;
  portrait($("#portrait canvas"), i);
  const facts = [["Image", nameOf(i)], ["Split", data.splits[split[i]]], ["Class", className(label[i])], ["Cluster", data.clusters[cluster[i]]],
    ["Distance", distance[i].toFixed(3)], ["Margin", margin[i].toFixed(3)]];
  $("#portrait dl").replaceChildren(...facts.flatMap(([k, v]) => [make("dt", { textContent: k }), make("dd", { textContent: v })]));
  const k = data.neighbours, places = Array.from(near.subarray(i * k, (i + 1) * k));
  $("#neighbours").replaceChildren(...places.map((place) => thumb(shown[place])));
  if (show) {
    const x = screenX(i), y = screenY(i);
    if (x < 0 || y < 0 || x > wide || y > high) { view.x = xy[2 * i]; view.y = xy[2 * i + 1]; }
  }
}

function step(direction) { // to the next visible image of the same cluster, by distance to its centroid
  const from = selected < 0 ? nearestTo(wide / 2, high / 2, Infinity) : selected;
  if (from < 0) return;
  const order = members(cluster[from], "nearest"), at = order.indexOf(from);
  select(order[(at + direction + order.length) % order.length] ?? from, true);
}

function members(k, order) {
  const list = [];
  for (let i = 0; i < count; i++) if (visible[i] && cluster[i] === k) list.push(i);
  const key = { nearest: (i) => distance[i], unsure: (i) => margin[i], farthest: (i) => -distance[i] }[order];
  return list.sort((a, b) => key(a) - key(b) || a - b);
}

let galleryLimit = 48;
function fillGallery() {
  const k = Number($("#gallery-cluster").value), list = members(k, $("#gallery-order").value);
  const pictured = hasPictures ? list.filter((i) => tileOf[i] >= 0) : list;
  $("#gallery-title").textContent = `Cluster ${data.clusters[k]}: ${list.length.toLocaleString("en")} images shown`;
  $("#gallery-grid").replaceChildren(...pictured.slice(0, galleryLimit).map(thumb));
  $("#more").hidden = pictured.length <= galleryLimit;
}
function openGallery(k) {
  $("#gallery-cluster").value = k;
  galleryLimit = 48;
  fillGallery();
  $("#gallery").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

function fillCrossing() {
  const table = Array.from(data.classes, () => new Array(data.clusters.length).fill(0));
  let labelled = 0;
  for (let i = 0; i < count; i++) if (visible[i] && label[i] >= 0) { table[label[i]][cluster[i]]++; labelled++; }
  $("#crossing").hidden = !hasLabels;
  if (!hasLabels) return;
  const corner = make("tr", {}, make("th", { textContent: "class \\ cluster" }), ...data.clusters.map((name) => make("th", { textContent: name })));
  const rows = table.map((cells, c) => {
    const total = cells.reduce((a, b) => a + b, 0) || 1;
    return make("tr", {}, make("th", { textContent: data.classes[c] }), ...cells.map((n, k) => {
      const button = make("button", { type: "button", textContent: n || "", onclick: () => only(c, k) });
      button.setAttribute("aria-label", `${n} images of class ${data.classes[c]} in cluster ${data.clusters[k]}`);
      const cell = make("td", {}, button);
      cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round((75 * n) / total)}%, transparent)`;
      return cell;
    }));
  });
  $("#crossing table").replaceChildren(make("thead", {}, corner), make("tbody", {}, ...rows));
}
function only(c, k) {
  on.label = new Set([c]);
  on.cluster = new Set([k]);
  $("#gallery-cluster").value = k;
  refreshBoxes();
  applyFilters();
  $("#gallery").scrollIntoView();
}

// ---- filters ----------------------------------------------------------------------------------

const hasLabels = label.some((l) => l >= 0);
const boxes = [];
function refreshBoxes() { for (const { box, key, value } of boxes) box.checked = on[key].has(value); }

function group(title, key, entries, palette, action) {
  const rows = entries.map(([value, name, total]) => {
    const box = make("input", { type: "checkbox", checked: true, id: `${key}-${value}` });
    box.setAttribute("aria-label", `show ${title.toLowerCase()} ${name}`);
    box.onchange = () => { on[key][box.checked ? "add" : "delete"](value); applyFilters(); };
    boxes.push({ box, key, value });
    const swatch = make("span", { className: "swatch" });
    if (palette) swatch.style.setProperty("--colour", value < 0 ? data.unknownColour : palette[value]);
    const text = action ? make("button", { type: "button", className: "name", textContent: name, title: `Gallery of ${name}`, onclick: () => action(value) })
      : make("label", { className: "name", textContent: name, htmlFor: box.id });
    return make("div", { className: "row" }, box, ...(palette ? [swatch] : []), text, make("span", { className: "count", textContent: total.toLocaleString("en") }));
  });
  const all = (state) => make("button", { type: "button", className: "link", textContent: state ? "all" : "none", onclick: () => {
    on[key] = new Set(state ? entries.map(([value]) => value) : []);
    refreshBoxes(); applyFilters();
  } });
  const top = make("div", { className: "top" }, make("h3", { textContent: title }), all(true), all(false));
  $("#filters").append(make("div", { className: "group" }, top, make("div", { className: "rows" }, ...rows)));
}
function tally(values, value) { let n = 0; for (const v of values) n += v === value; return n; }

function buildFilters() {
  if (data.splits.length > 1) group("Split", "split", data.splits.map((name, s) => [s, name, tally(split, s)]));
  group("Cluster", "cluster", data.clusters.map((name, k) => [k, name, tally(cluster, k)]), data.clusterColours, openGallery);
  $("#wrong-row").hidden = $("#dashed").hidden = !hasLabels;
  if (!hasLabels) return;
  const known = data.classes.map((name, c) => [c, name, tally(label, c)]), unknown = tally(label, -1);
  group("Class", "label", unknown ? [...known, [-1, "unknown", unknown]] : known, data.classColours);
  let wrong = 0;
  for (let i = 0; i < count; i++) wrong += isWrong(i);
  $("#wrong-row .count").textContent = wrong.toLocaleString("en");
  $("#colour").append(make("option", { value: "label", textContent: "class" }));
}

// ---- events -----------------------------------------------------------------------------------

const fingers = new Map();
let moved = 0;
const place = (event) => { const box = map.getBoundingClientRect(); return { x: (event.clientX - box.left), y: (event.clientY - box.top) }; };
function spread() { const [a, b] = fingers.values(); return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, gap: Math.hypot(a.x - b.x, a.y - b.y) || 1 }; }

map.onpointerdown = (event) => { map.setPointerCapture(event.pointerId); fingers.set(event.pointerId, place(event)); moved = fingers.size > 1 ? 99 : 0; };
map.onpointermove = (event) => {
  const now = place(event), before = fingers.get(event.pointerId);
  if (!before) return hover(nearestTo(now.x * pixel, now.y * pixel, 14 * pixel), now.x, now.y);
  const old = fingers.size === 2 ? spread() : null;
  fingers.set(event.pointerId, now);
  moved += Math.hypot(now.x - before.x, now.y - before.y);
  if (old) {
    const next = spread();
    pan((next.x - old.x) * pixel, (next.y - old.y) * pixel);
    zoomAt(next.x * pixel, next.y * pixel, next.gap / old.gap);
  } else if (moved > 4) {
    hover(-1);
    pan((now.x - before.x) * pixel, (now.y - before.y) * pixel);
  }
};
map.onpointerup = map.onpointercancel = (event) => {
  fingers.delete(event.pointerId);
  if (event.type === "pointercancel" || moved > 4) return;
  const { x, y } = place(event);
  select(nearestTo(x * pixel, y * pixel, (event.pointerType === "mouse" ? 14 : 24) * pixel));
};
map.onpointerleave = () => hover(-1);
map.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { x, y } = place(event);
  zoomAt(x * pixel, y * pixel, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
}, { passive: false });
map.onkeydown = (event) => {
  const stride = 60 * pixel;
  const keys = {
    ArrowLeft: () => pan(stride, 0), ArrowRight: () => pan(-stride, 0), ArrowUp: () => pan(0, stride), ArrowDown: () => pan(0, -stride),
    "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: reset, "[": () => step(-1), "]": () => step(1),
    Enter: () => select(nearestTo(wide / 2, high / 2, Infinity)), Escape: () => { select(-1); hover(-1); },
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
};
$("#zoom-in").onclick = () => zoom(1.6);
$("#zoom-out").onclick = () => zoom(1 / 1.6);
$("#zoom-reset").onclick = reset;
$("#colour").onchange = request;
$("#wrong").onchange = (event) => { wrongOnly = event.target.checked; applyFilters(); };
$("#gallery-cluster").onchange = $("#gallery-order").onchange = () => { galleryLimit = 48; fillGallery(); };
$("#more").onclick = () => { galleryLimit += 96; fillGallery(); };

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("#theme").textContent = dark ? "Light" : "Dark";
  request();
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
prefersDark.onchange = () => setTheme(prefersDark.matches);
$("#theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");

// ---- start ------------------------------------------------------------------------------------

document.title = `Clusters of ${data.dataset}`;
$("#dataset").textContent = data.dataset;
$("#summary").textContent = `${count.toLocaleString("en")} images, ${data.clusters.length} clusters, ${data.method}.`
  + (hasPictures && data.pictures < count ? ` Pictures and neighbours are of a random sample of ${data.pictures.toLocaleString("en")} images.` : "")
  + (hasPictures ? "" : " The images were not there, so there are no pictures.");
data.clusters.forEach((name, k) => $("#gallery-cluster").append(make("option", { value: k, textContent: name })));
setTheme(prefersDark.matches);
buildFilters();
new ResizeObserver(resize).observe(map);
resize();
applyFilters();
requestAnimationFrame(() => setTimeout(loadSheets));
// For tests, and for the curious at the console.
window.report = { data, ready: () => !sheetsLeft, shown: () => visibleCount, place: (i) => ({ x: screenX(i) / pixel, y: screenY(i) / pixel }), view: () => ({ ...view }) };
