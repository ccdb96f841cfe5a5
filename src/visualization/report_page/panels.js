// The panels around the map; starts the page.

const everything = () => ({
  cluster: new Set(data.clusters.keys()), label: new Set([-1, ...data.classes.keys()]), split: new Set(data.splits.keys()),
});
let on = everything(); // what the filters let through
let wrongOnly = false, selected = -1, hovered = -1;
let visible = new Uint8Array(count), visibleCount = 0;

function applyFilters() {
  visibleCount = 0;
  for (let i = 0; i < count; i++) {
    visible[i] = on.cluster.has(cluster[i]) && on.label.has(label[i]) && on.split.has(split[i]) && (!wrongOnly || isWrong(i));
    visibleCount += visible[i];
  }
  $("#show-all").hidden = visibleCount === count;
  $("#shown-count").textContent = `${visibleCount.toLocaleString("en")} of ${count.toLocaleString("en")} images`;
  hovered = -1;
  $("#tip").hidden = true;
  fillGallery();
  fillCrossing();
  request();
}

// ---- selection, gallery, table -------------------------------------------------------------------

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
    ["Distance", distance[i].toFixed(3)], [data.certainty === "margin" ? "Margin" : "Confidence", certainty[i].toFixed(3)]];
  $("#portrait dl").replaceChildren(...facts.flatMap(([k, v]) => [make("dt", { textContent: k }), make("dd", { textContent: v })]));
  const k = nearest.length / count, places = Array.from(nearest.subarray(i * k, (i + 1) * k));
  $("#neighbors").replaceChildren(...places.map((place) => thumb(pictured[place])));
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
  const key = { nearest: (i) => distance[i], unsure: (i) => certainty[i], farthest: (i) => -distance[i] }[order];
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
  for (let i = 0; i < count; i++) if (visible[i] && label[i] >= 0) table[label[i]][cluster[i]]++;
  $("#crossing").hidden = !hasLabels;
  if (!hasLabels) return;
  const place = (k) => data.classOfCluster[k] + 1 || data.classes.length + 1;
  const order = [...data.clusters.keys()].sort((a, b) => place(a) - place(b)); // correct ones on the diagonal
  const corner = make("tr", {}, make("th", { textContent: "class \\ cluster" }), ...order.map((k) => make("th", { textContent: data.clusters[k] })));
  const rows = table.map((cells, c) => {
    const total = cells.reduce((a, b) => a + b, 0) || 1;
    return make("tr", {}, make("th", { textContent: data.classes[c] }), ...order.map((k) => {
      const n = cells[k];
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

// ---- filters -------------------------------------------------------------------------------------

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
    if (palette) swatch.style.setProperty("--color", value < 0 ? data.unknownColor : palette[value]);
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
  group("Cluster", "cluster", data.clusters.map((name, k) => [k, name, tally(cluster, k)]), data.clusterColors, openGallery);
  $("#wrong-row").hidden = $("#dashed").hidden = !hasLabels;
  if (!hasLabels) return;
  const known = data.classes.map((name, c) => [c, name, tally(label, c)]), unknown = tally(label, -1);
  group("Class", "label", unknown ? [...known, [-1, "unknown", unknown]] : known, data.classColors);
  let wrong = 0;
  for (let i = 0; i < count; i++) wrong += isWrong(i);
  $("#wrong-row .count").textContent = wrong.toLocaleString("en");
  $("#color").append(make("option", { value: "label", textContent: "class" }));
}

// ---- buttons -------------------------------------------------------------------------------------

$("#zoom-in").onclick = () => zoom(1.6);
$("#zoom-out").onclick = () => zoom(1 / 1.6);
$("#zoom-reset").onclick = reset;
$("#show-all").onclick = () => {
  on = everything();
  wrongOnly = $("#wrong").checked = false;
  refreshBoxes();
  applyFilters();
};
$("#color").onchange = request;
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

// ---- start ---------------------------------------------------------------------------------------

document.title = `Clusters of ${data.dataset}`;
$("#dataset").textContent = data.dataset;
$("#summary").textContent = `${count.toLocaleString("en")} images, ${data.clusters.length} clusters, ${data.method}.`
  + (hasPictures && pictured.length < count ? ` Pictures and neighbors come from a random sample of ${pictured.length.toLocaleString("en")} images.` : "")
  + (hasPictures ? "" : " No pictures: the images were not available.");
data.clusters.forEach((name, k) => $("#gallery-cluster").append(make("option", { value: k, textContent: name })));
setTheme(prefersDark.matches);
buildFilters();
applyFilters();
resize();
new ResizeObserver(resize).observe(map);
requestAnimationFrame(() => setTimeout(loadSheets));
// For tests and the browser console.
window.report = {
  data, ready: () => !sheetsLeft, firstDraw: () => firstDraw, visibleCount: () => visibleCount, view: () => ({ ...view }),
  place: (i) => ({ x: screenX(i) / pixel, y: screenY(i) / pixel }),
};
