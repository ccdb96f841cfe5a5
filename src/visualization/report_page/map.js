// The map: drawing, pointer and keyboard.

const map = $("#map"), context = map.getContext("2d");
let pixel = 1, wide = 1, high = 1; // device pixels
let extent = bounds(() => true); // of what the map was last moved to
const LEAST = Math.max(extent.wide, extent.high) / 25; // side of an extent
let view = { x: 0, y: 0, scale: 1 }; // center in map units, and device pixels per unit

function bounds(rule) {
  let [left, right, low, top] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < count; i++) {
    if (!rule(i)) continue;
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
function reset() { // to what the filters leave
  if (visibleCount) {
    const { x, y, wide, high } = bounds((i) => visible[i]);
    extent = { x, y, wide: Math.max(wide, LEAST), high: Math.max(high, LEAST) };
  }
  view = { x: extent.x, y: extent.y, scale: fitScale() };
  request();
}
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
// What can color the map: a whole number for each image, -1 for gray; the color and name of each number.
const STEPS = 8;
const steps = certainty.map((c) => Math.min(STEPS - 1, Math.max(0, Math.floor(c * STEPS))));
const fade = (k) => `#${hex("#0072b2").map((v) => Math.round(v + (1 - k / (STEPS - 1)) * (225 - v)).toString(16).padStart(2, "0")).join("")}`;
const COLORINGS = {
  group: () => ({ of: group, list: [...groups].reduce((list, [id, { color }]) => { list[id] = color; return list; }, []), name: (id) => (map.clientWidth > 600 && groups.size <= 20 ? title : short)(id) }),
  label: () => ({ of: label, list: data.classColors, name: (c) => data.classes[c] }),
  split: () => ({ of: split, list: data.colors.slice(0, data.splits.length), name: (s) => data.splits[s] }),
  certainty: () => ({ of: steps, list: Array.from({ length: STEPS }, (_, k) => fade(k)) }),
  unusual: () => ({ of: Array.from(unusual, (u) => u - 1), list: ["#d55e00"] }),
};
function inks() { // the dark theme mixes colors with white
  const dark = document.documentElement.dataset.theme === "dark", coloring = COLORINGS[$("#color").value]();
  const lift = (c) => hex(c).map((v) => (dark ? Math.round(v + 0.3 * (255 - v)) : v));
  return { ...coloring, list: coloring.list.map(lift), unknown: dark ? [85, 89, 95] : hex(data.unknownColor) };
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
const pictureSize = (points) => (hasPictures && !sheetsLeft && points <= 1500 ? Math.min(Math.max(64, data.tile) * pixel, Math.max(14 * pixel, 0.55 * Math.sqrt((wide * high) / points))) : 0);

// Points are written straight into the pixels: ten times faster than one path each, and the same on any machine.
function draw() {
  map.setAttribute("aria-busy", sheetsLeft > 0);
  const { of, list, unknown, name } = inks(), zoomed = view.scale / fitScale();
  const back = hex(getComputedStyle(document.documentElement).getPropertyValue("--stage").trim());
  const radius = Math.min(9, Math.max(0.7, Math.min(3.2, 210 / Math.sqrt(count))) * zoomed ** 0.35) * pixel;
  const image = context.createImageData(wide, high), pixels = image.data, stamp = disc(radius);
  new Uint32Array(pixels.buffer).fill((255 << 24) | (back[2] << 16) | (back[1] << 8) | back[0]);
  drawPoints(pixels, list, unknown);
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
  const ink = getComputedStyle(document.body).color, colorOf = (i) => `rgb(${of[i] < 0 ? unknown : list[of[i]]})`;
  for (const i of size ? inside : []) drawPicture(i, size, 2, colorOf(i));
  const mark = (i, border, fill) => (size ? drawPicture(i, size, border, fill) : spot(i, radius + pixel, fill, ink));
  for (const i of inside) if (chosen.has(i)) mark(i, 4, ink);
  if (name && (!size || zoomed < 2)) drawNames(of, list, name);
  for (const i of inside) if (unusual[i]) mark(i, chosen.has(i) ? 4 : 2, chosen.has(i) ? ink : colorOf(i)); // no name hides it
  for (const [i, width] of [[hovered, 2], [selected, 4]]) {
    if (i < 0) continue;
    if (size && tileOf[i] >= 0) drawPicture(i, 1.4 * size, width, ink);
    else ring(i, radius + 3 * pixel, width, ink);
  }
  for (const outline of [frame, lasso]) if (outline) {
    context.setLineDash([6 * pixel, 4 * pixel]);
    context.strokeStyle = ink; context.lineWidth = 1.5 * pixel;
    context.beginPath();
    for (const point of outline) context.lineTo(...toScreen(...point));
    context.closePath();
    context.stroke();
    context.setLineDash([]);
  }
}

function drawPoints(pixels, list, unknown) { // of the images beyond the sample
  if (!pointsPass) return;
  const byGroup = $("#color").value === "group", steps = 65535, [[left, low], [right, top]] = [point.low ?? [], point.high ?? []];
  for (let p = 0; p < point.count; p++) {
    if (!on.group.has(groupOfPoint[p])) continue;
    const [x, y] = toScreen(left + (point.xy[2 * p] / steps) * (right - left), low + (point.xy[2 * p + 1] / steps) * (top - low));
    if (!(x >= 0 && y >= 0 && x < wide && y < high)) continue;
    const at = 4 * (Math.floor(y) * wide + Math.floor(x)), ink = byGroup ? list[groupOfPoint[p]] : unknown;
    for (let k = 0; k < 3; k++) pixels[at + k] += (ink[k] - pixels[at + k]) * 0.4;
  }
}

function drawPicture(i, size, border, ink) {
  const x = screenX(i) - size / 2, y = screenY(i) - size / 2;
  context.fillStyle = ink;
  if (tileOf[i] >= 0) context.fillRect(x - border * pixel, y - border * pixel, size + 2 * border * pixel, size + 2 * border * pixel);
  paint(context, i, x, y, size);
}

let medians = {}; // by what colors the map; cleared when other images are visible
function middles(of, size) { // the median of the visible images of each number; undefined without any
  const members = Array.from({ length: size }, () => []);
  for (let i = 0; i < count; i++) if (visible[i] && of[i] >= 0) members[of[i]].push(i);
  const median = (list, k) => list.map((i) => xy[2 * i + k]).sort((a, b) => a - b)[list.length >> 1];
  return (medians[$("#color").value] ??= members.map((list) => [median(list, 0), median(list, 1)]));
}
function drawNames(of, list, names) {
  if (Object.keys(list).length > 80) return; // groups need not be numbered without gaps
  const style = getComputedStyle(document.body);
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
function spot(i, radius, fill, edge) {
  context.beginPath();
  context.arc(screenX(i), screenY(i), radius, 0, 7);
  context.fillStyle = fill; context.strokeStyle = edge; context.lineWidth = pixel;
  context.fill();
  context.stroke();
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
// A drag may draw a rectangle from its corner, which becomes the frame of what is shown or chooses what is in it, or a
// lasso, which chooses. Outlines are lists of places in map units.
let framing = false, corner = null, frame = null, lasso = null;
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
function stretch(event) {
  const [x, y] = mapPoint(event), [left, top] = corner, rectangle = framing || event.shiftKey;
  if (!rectangle) lasso = [...(lasso ?? [corner]), [x, y]];
  else if (choosing) lasso = [[left, top], [x, top], [x, y], [left, y]];
  else frame = [[left, top], [x, top], [x, y], [left, y]];
  request();
}
function inside(outline, i) { // whether a ray from the image crosses the outline an odd number of times
  const x = xy[2 * i], y = xy[2 * i + 1];
  let odd = false;
  outline.forEach(([ax, ay], at) => {
    const [bx, by] = outline.at(at - 1);
    if (ay > y !== by > y && x < ax + ((y - ay) / (by - ay)) * (bx - ax)) odd = !odd;
  });
  return odd;
}
function stretched() {
  if (!lasso) return showFramed();
  const outline = lasso;
  lasso = null;
  setFraming(false);
  choose([...visible.keys()].filter((i) => visible[i] && inside(outline, i)));
}

map.onpointerdown = (event) => {
  map.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, place(event));
  moved = fingers.size > 1 ? 99 : 0;
  lasso = null;
  corner = (framing || choosing || event.shiftKey) && fingers.size === 1 ? mapPoint(event) : null;
};
map.onpointermove = (event) => {
  const now = place(event), before = fingers.get(event.pointerId);
  if (!before) return hover(under(now), now.x, now.y);
  const old = fingers.size === 2 ? spread() : null;
  fingers.set(event.pointerId, now);
  moved += Math.hypot(now.x - before.x, now.y - before.y);
  if (corner && moved > 4) {
    hover(-1);
    stretch(event);
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
  if (corner && moved > 4 && (frame || lasso)) return stretched();
  if (event.type === "pointercancel" || moved > 4) return;
  const { x, y } = place(event), i = event.pointerType === "mouse" ? under({ x, y }) : nearestTo(x * pixel, y * pixel, Math.max(reach, 24 * pixel));
  if (!choosing && !event.shiftKey && !event.ctrlKey && !event.metaKey) select(i);
  else if (i >= 0) toggle(i);
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
    Enter: () => select(nearestTo(wide / 2, high / 2, Infinity)), " ": () => { if (selected >= 0) toggle(selected); },
    Escape: () => { select(-1); hover(-1); },
  };
  if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
  event.preventDefault();
  keys[event.key]();
};
