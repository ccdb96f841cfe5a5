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

let asked = false, firstDraw = null;
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

// Points are written straight into the pixels: ten times faster than one path each, and the same on any machine.
function draw() {
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
  reach = 14 * pixel;
  if (hasPictures && !sheetsLeft && zoomed > 2 && inside.length < 400) drawPictures(inside, of, list, unknown);
  else drawNames(of, list);
  for (const [i, width] of [[hovered, 2], [selected, 3]]) if (i >= 0) ring(i, radius + 3 * pixel, width);
  firstDraw ??= performance.now();
}

function drawPictures(inside, of, list, unknown) {
  const size = Math.min(64, Math.max(26, 450 / Math.sqrt(inside.length + 1))) * pixel;
  reach = size / 2;
  for (const i of inside) {
    const x = screenX(i) - size / 2, y = screenY(i) - size / 2;
    context.fillStyle = `rgb(${of[i] < 0 ? unknown : list[of[i]]})`;
    if (tileOf[i] >= 0) context.fillRect(x - 2 * pixel, y - 2 * pixel, size + 4 * pixel, size + 4 * pixel);
    paint(context, i, x, y, size);
  }
}

const medians = {};
function middles(of, groups) { // the median of each group on the map
  const key = $("#color").value;
  if (medians[key]) return medians[key];
  const members = Array.from({ length: groups }, () => []);
  for (let i = 0; i < count; i++) if (of[i] >= 0) members[of[i]].push(i);
  const median = (list, k) => list.map((i) => xy[2 * i + k]).sort((a, b) => a - b)[list.length >> 1];
  return (medians[key] = members.map((list) => [median(list, 0), median(list, 1)]));
}
function drawNames(of, list) {
  if (list.length > 40) return;
  const names = $("#color").value === "cluster" ? data.clusters : data.classes, style = getComputedStyle(document.body);
  context.font = `600 ${12 * pixel}px ${style.fontFamily}`;
  context.textAlign = "center"; context.textBaseline = "middle"; context.lineJoin = "round";
  context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--stage");
  context.fillStyle = style.color; context.lineWidth = 3.5 * pixel;
  const placed = []; // a name moves down until it covers no earlier one
  middles(of, list.length).forEach(([x, y], g) => {
    if (x === undefined || !visibleCount || !on[$("#color").value].has(g)) return;
    const at = [(x - view.x) * view.scale + wide / 2, (view.y - y) * view.scale + high / 2];
    const half = context.measureText(names[g]).width / 2;
    const covers = ([px, py, other]) => Math.abs(px - at[0]) < half + other && Math.abs(py - at[1]) < 14 * pixel;
    while (placed.some(covers)) at[1] += 2 * pixel;
    placed.push([...at, half]);
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
const under = ({ x, y }) => nearestTo(x * pixel, y * pixel, reach);
const place = (event) => { const box = map.getBoundingClientRect(); return { x: (event.clientX - box.left), y: (event.clientY - box.top) }; };
function spread() { const [a, b] = fingers.values(); return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, gap: Math.hypot(a.x - b.x, a.y - b.y) || 1 }; }

map.onpointerdown = (event) => { map.setPointerCapture(event.pointerId); fingers.set(event.pointerId, place(event)); moved = fingers.size > 1 ? 99 : 0; };
map.onpointermove = (event) => {
  const now = place(event), before = fingers.get(event.pointerId);
  if (!before) return hover(under(now), now.x, now.y);
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
  select(event.pointerType === "mouse" ? under({ x, y }) : nearestTo(x * pixel, y * pixel, Math.max(reach, 24 * pixel)));
};
map.onpointerleave = () => hover(-1);
map.addEventListener("wheel", (event) => {
  event.preventDefault();
  const { x, y } = place(event);
  zoomAt(x * pixel, y * pixel, Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)));
  hover(under({ x, y }), x, y);
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
