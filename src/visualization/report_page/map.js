// The map: drawing, pointer and keyboard.

const map = $("#map"), context = map.getContext("2d");
let pixel = 1, wide = 1, high = 1; // device pixels
const extent = bounds();
let view = { x: 0, y: 0, scale: 1 }; // center in map units, and device pixels per unit

function bounds() {
  let [left, right, low, top] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < count; i++) {
    left = Math.min(left, xy[2 * i]); right = Math.max(right, xy[2 * i]);
    low = Math.min(low, xy[2 * i + 1]); top = Math.max(top, xy[2 * i + 1]);
  }
  return { x: (left + right) / 2, y: (low + top) / 2, wide: right - left || 1, high: top - low || 1 };
}
const fitScale = () => Math.min((wide - 60 * pixel) / extent.wide, (high - 60 * pixel) / extent.high); // room for half a picture
const toScreen = (x, y) => [(x - view.x) * view.scale + wide / 2, (view.y - y) * view.scale + high / 2];
const fromScreen = (x, y) => [(x - wide / 2) / view.scale + view.x, view.y - (y - high / 2) / view.scale];
const screenX = (i) => (xy[2 * i] - view.x) * view.scale + wide / 2;
const screenY = (i) => (view.y - xy[2 * i + 1]) * view.scale + high / 2;

function resize() {
  const first = wide === 1, zoom = first ? 1 : view.scale / fitScale();
  pixel = Math.min(window.devicePixelRatio || 1, 2);
  wide = map.width = Math.max(1, Math.round(map.clientWidth * pixel));
  high = map.height = Math.max(1, Math.round(map.clientHeight * pixel));
  if (first) reset();
  view.scale = fitScale() * zoom;
  draw(); // at once: resizing clears a canvas
}
function reset() { view = { x: extent.x, y: extent.y, scale: fitScale() }; request(); }
function zoomAt(x, y, factor) { // x and y stay under the pointer
  const scale = Math.min(Math.max(view.scale * factor, fitScale() / 2), fitScale() * 100);
  view.x += (x - wide / 2) * (1 / view.scale - 1 / scale);
  view.y -= (y - high / 2) * (1 / view.scale - 1 / scale);
  view.scale = scale;
  request();
}
const zoom = (factor) => zoomAt(wide / 2, high / 2, factor);
function pan(x, y) { view.x -= x / view.scale; view.y += y / view.scale; request(); }

let asked = false;
let reach = 14; // how far from a point the pointer still picks it, in device pixels
function request() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; draw(); });
}

const hex = (color) => [1, 3, 5].map((k) => parseInt(color.slice(k, k + 2), 16));
function inks() { // the dark theme mixes colors with white
  const by = $("#color").value, dark = document.documentElement.dataset.theme === "dark";
  const list = { cluster: data.clusterColors, label: data.classColors }[by];
  const lift = (c) => hex(c).map((v) => (dark ? Math.round(v + 0.3 * (255 - v)) : v));
  return { of: { cluster, label }[by], list: list.map(lift), unknown: dark ? [85, 89, 95] : hex(data.unknownColor) };
}

function disc(radius) { // offsets and coverage of an antialiased disc
  const out = [], reach = Math.ceil(radius);
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
    const cover = Math.min(1, radius + 0.5 - Math.hypot(x, y));
    if (cover > 0.05) out.push([x, y, cover * 0.85]);
  }
  return out;
}

// How large pictures are drawn in place of so many points, in device pixels; 0 for points.
const pictureSize = (points) => (hasPictures && !sheetsLeft && points <= 1500 ? Math.min(64 * pixel, Math.max(14 * pixel, 0.55 * Math.sqrt((wide * high) / points))) : 0);

// Points are written straight into the pixels: ten times faster than one path each, and the same on any machine.
function draw() {
  map.setAttribute("aria-busy", sheetsLeft > 0);
  const { of, list, unknown } = inks(), zoomed = view.scale / fitScale();
  const back = hex(getComputedStyle(document.documentElement).getPropertyValue("--stage").trim());
  const radius = Math.min(9, Math.max(0.7, Math.min(3.2, 210 / Math.sqrt(count))) * zoomed ** 0.35) * pixel;
  const image = context.createImageData(wide, high), pixels = image.data, stamp = disc(radius);
  new Uint32Array(pixels.buffer).fill((255 << 24) | (back[2] << 16) | (back[1] << 8) | back[0]);
  const inside = [], edge = Math.ceil(radius);
  for (const gray of [true, false]) for (let i = 0; i < count; i++) { // images without a class lie below
    if (!visible[i] || of[i] < 0 !== gray) continue;
    const x = Math.round(screenX(i)), y = Math.round(screenY(i));
    if (x < edge || y < edge || x >= wide - edge || y >= high - edge) continue;
    inside.push(i);
    const ink = gray ? unknown : list[of[i]];
    for (const [dx, dy, cover] of stamp) {
      const at = 4 * ((y + dy) * wide + x + dx);
      for (let k = 0; k < 3; k++) pixels[at + k] += (ink[k] - pixels[at + k]) * cover;
    }
  }
  context.putImageData(image, 0, 0);
  const size = pictureSize(inside.length);
  reach = size ? 0.6 * size : 14 * pixel;
  for (const i of size ? inside : []) drawPicture(i, size, 2, `rgb(${of[i] < 0 ? unknown : list[of[i]]})`);
  if (!size || zoomed < 2) drawNames(of, list);
  const ink = getComputedStyle(document.body).color;
  for (const [i, width] of [[hovered, 2], [selected, 4]]) {
    if (i < 0) continue;
    if (size && tileOf[i] >= 0) drawPicture(i, 1.4 * size, width, ink);
    else ring(i, radius + 3 * pixel, width, ink);
  }
  if (frame) {
    const [x, y] = toScreen(frame.left, frame.top), [right, bottom] = toScreen(frame.right, frame.low);
    context.setLineDash([6 * pixel, 4 * pixel]);
    context.strokeStyle = ink; context.lineWidth = 1.5 * pixel;
    context.strokeRect(x, y, right - x, bottom - y);
    context.setLineDash([]);
  }
}

function drawPicture(i, size, border, ink) {
  const x = screenX(i) - size / 2, y = screenY(i) - size / 2;
  context.fillStyle = ink;
  if (tileOf[i] >= 0) context.fillRect(x - border * pixel, y - border * pixel, size + 2 * border * pixel, size + 2 * border * pixel);
  paint(context, i, x, y, size);
}

let medians = {}; // by what colors the map; cleared when other images are visible
function middles(of, groups) { // the median of the visible images of each group; undefined without any
  const members = Array.from({ length: groups }, () => []);
  for (let i = 0; i < count; i++) if (visible[i] && of[i] >= 0) members[of[i]].push(i);
  const median = (list, k) => list.map((i) => xy[2 * i + k]).sort((a, b) => a - b)[list.length >> 1];
  return (medians[$("#color").value] ??= members.map((list) => [median(list, 0), median(list, 1)]));
}
function drawNames(of, list) {
  if (list.length > 40) return;
  const caption = map.clientWidth > 600 && list.length <= 20 ? title : short;
  const names = $("#color").value === "cluster" ? caption : (c) => data.classes[c], style = getComputedStyle(document.body);
  context.font = `600 ${12 * pixel}px ${style.fontFamily}`;
  context.textAlign = "center"; context.textBaseline = "middle";
  const back = getComputedStyle(document.documentElement).getPropertyValue("--stage");
  const placed = []; // a name moves down until it covers no earlier one
  middles(of, list.length).forEach(([x, y], g) => {
    if (x === undefined) return;
    const at = toScreen(x, y), name = names(g), half = context.measureText(name).width / 2;
    const covers = ([px, py, other]) => Math.abs(px - at[0]) < half + other && Math.abs(py - at[1]) < 19 * pixel;
    while (placed.some(covers)) at[1] += 2 * pixel;
    placed.push([...at, half]);
    context.globalAlpha = 0.8;
    context.fillStyle = back;
    context.fillRect(at[0] - half - 4 * pixel, at[1] - 9 * pixel, 2 * half + 8 * pixel, 18 * pixel);
    context.globalAlpha = 1;
    context.fillStyle = style.color;
    context.fillText(name, ...at);
  });
}
function ring(i, radius, width, ink) {
  context.beginPath();
  context.arc(screenX(i), screenY(i), radius, 0, 7);
  context.strokeStyle = ink;
  context.lineWidth = width * pixel;
  context.stroke();
}

function nearestTo(x, y, within) { // the visible image nearest to a point of the canvas
  let best = -1, least = within * within;
  for (let i = 0; i < count; i++) {
    if (!visible[i]) continue;
    const dx = screenX(i) - x, dy = screenY(i) - y, d = dx * dx + dy * dy;
    if (d < least) { least = d; best = i; }
  }
  return best;
}

// ---- pointer and keyboard ------------------------------------------------------------------------

const fingers = new Map();
let moved = 0;
let framing = false, corner = null, frame = null; // in framing, a drag draws a frame from its corner; map units
const under = ({ x, y }) => nearestTo(x * pixel, y * pixel, reach);
const place = (event) => { const box = map.getBoundingClientRect(); return { x: (event.clientX - box.left), y: (event.clientY - box.top) }; };
function spread() { const [a, b] = fingers.values(); return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, gap: Math.hypot(a.x - b.x, a.y - b.y) || 1 }; }

const mapPoint = (event) => { const { x, y } = place(event); return fromScreen(x * pixel, y * pixel); };

function setFraming(state) {
  framing = state;
  map.classList.toggle("framing", state);
  $("#frame").setAttribute("aria-pressed", state);
  $("#frame").textContent = frame ? "Remove frame" : "Frame";
}
function stretchFrame(event) {
  const [x, y] = mapPoint(event);
  frame = { left: Math.min(x, corner[0]), right: Math.max(x, corner[0]), low: Math.min(y, corner[1]), top: Math.max(y, corner[1]) };
  request();
}
const inFrame = (i) => !frame || (xy[2 * i] >= frame.left && xy[2 * i] <= frame.right && xy[2 * i + 1] >= frame.low && xy[2 * i + 1] <= frame.top);

map.onpointerdown = (event) => {
  map.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, place(event));
  moved = fingers.size > 1 ? 99 : 0;
  corner = (framing || event.shiftKey) && fingers.size === 1 ? mapPoint(event) : null;
};
map.onpointermove = (event) => {
  const now = place(event), before = fingers.get(event.pointerId);
  if (!before) return hover(under(now), now.x, now.y);
  const old = fingers.size === 2 ? spread() : null;
  fingers.set(event.pointerId, now);
  moved += Math.hypot(now.x - before.x, now.y - before.y);
  if (corner && moved > 4) {
    hover(-1);
    stretchFrame(event);
  } else if (old) {
    const next = spread();
    pan((next.x - old.x) * pixel, (next.y - old.y) * pixel);
    zoomAt(next.x * pixel, next.y * pixel, next.gap / old.gap);
  } else if (moved > 4) {
    hover(-1);
    pan((now.x - before.x) * pixel, event.pointerType === "touch" ? 0 : (now.y - before.y) * pixel);
  }
};
map.onpointerup = map.onpointercancel = (event) => {
  fingers.delete(event.pointerId);
  if (corner && moved > 4) return showFramed();
  if (event.type === "pointercancel" || moved > 4) return;
  const { x, y } = place(event);
  select(event.pointerType === "mouse" ? under({ x, y }) : nearestTo(x * pixel, y * pixel, Math.max(reach, 24 * pixel)));
};
map.onpointerleave = () => hover(-1);
// Two fingers are for the map, one scrolls the page (touch-action in page.css).
map.addEventListener("touchmove", (event) => { if (event.touches.length > 1) event.preventDefault(); }, { passive: false });
let wheelHint = 0;
map.addEventListener("wheel", (event) => { // it scrolls the page until the map is clicked
  const zooms = event.ctrlKey || event.metaKey || document.activeElement === map;
  $("#wheel-hint").hidden = zooms;
  clearTimeout(wheelHint);
  wheelHint = setTimeout(() => { $("#wheel-hint").hidden = true; }, 1500);
  if (!zooms) return;
  event.preventDefault();
  const { x, y } = place(event);
  zoomAt(x * pixel, y * pixel, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
  hover(under({ x, y }), x, y);
}, { passive: false });
map.onkeydown = (event) => {
  const stride = 60 * pixel;
  const keys = {
    ArrowLeft: () => pan(stride, 0), ArrowRight: () => pan(-stride, 0), ArrowUp: () => pan(0, stride), ArrowDown: () => pan(0, -stride),
    "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: reset, p: () => step(-1), n: () => step(1),
    Enter: () => select(nearestTo(wide / 2, high / 2, Infinity)), Escape: () => { select(-1); hover(-1); },
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
};
