// What is shown: filters, search and frame; and its download.

const everything = () => ({ group: new Set([-1, ...groups.keys()]), label: new Set([-1, ...data.classes.keys()]), split: new Set(data.splits.keys()) });
let on = everything(); // what the filters let through
let selected = -1, hovered = -1;
let visible = new Uint8Array(count), visibleCount = 0;
const flags = [["#wrong", isWrong, hasLabels], ["#unusual-only", (i) => unusual[i] === 1, unusual.includes(1)]];

function applyFilters() {
  const wanted = $("#search").value.trim().toLowerCase();
  const rules = flags.filter(([box]) => $(box).checked).map(([, rule]) => rule);
  if (wanted) rules.push((i) => nameOf(i).toLowerCase().includes(wanted));
  if (frame) rules.push((i) => inside(frame, i));
  passes = (i) => on.split.has(split[i]) && rules.every((rule) => rule(i));
  const { label: labels, split: splits } = everything();
  pointsPass = !rules.length && on.label.size === labels.size && on.split.size === splits.size;
  visibleCount = 0;
  for (let i = 0; i < count; i++) {
    visible[i] = on.group.has(group[i]) && on.label.has(label[i]) && passes(i);
    visibleCount += visible[i];
  }
  medians = {};
  $("#show-all").hidden = visibleCount === count;
  $("#empty").hidden = visibleCount > 0;
  $("#shown-count").textContent = `${number(visibleCount)} of ${number(count)} images`;
  $("#save-csv").disabled = !visibleCount;
  hover(-1);
  fillGallery();
  request();
}
function filter() { // and move the map to what is left
  applyFilters();
  fillCrossing();
  reset();
}
let passes = () => true; // every rule but those of cluster and class
let pointsPass = true; // whether only groups are filtered: of a point nothing else is known

function showAll() {
  on = everything();
  for (const [box] of flags) $(box).checked = false;
  $("#search").value = "";
  frame = null;
  setFraming(false);
  refreshBoxes();
  filter();
}
function showOnly(key, value) {
  on[key] = new Set([value]);
  if (key === "group") showInGallery(value);
  refreshBoxes();
  filter();
}
function showFramed() {
  setFraming(false);
  showInGallery("all");
  filter();
}

// ---- boxes ---------------------------------------------------------------------------------------

let boxes = [];
function refreshBoxes() { for (const { box, key, value } of boxes) box.checked = on[key].has(value); }

function boxesOf(heading, key, entries, colorOf, action) {
  const link = (text, onclick) => make("button", { type: "button", className: "link", textContent: text, onclick });
  const rows = entries.map(([value, name, total]) => {
    const box = make("input", { type: "checkbox", checked: on[key].has(value), id: `${key}-${value}` });
    box.setAttribute("aria-label", `show ${heading.toLowerCase()} ${name}`);
    box.onchange = () => { on[key][box.checked ? "add" : "delete"](value); filter(); };
    boxes.push({ box, key, value });
    const swatch = make("span", { className: "swatch" });
    if (colorOf) swatch.style.setProperty("--color", value < 0 ? data.unknownColor : colorOf(value));
    const text = action ? make("button", { type: "button", className: "name", textContent: name, title: `Gallery of ${heading.toLowerCase()} ${name}`, onclick: () => action(value) })
      : make("label", { className: "name", textContent: name, htmlFor: box.id });
    const only = link("only", () => showOnly(key, value));
    only.setAttribute("aria-label", `show only ${heading.toLowerCase()} ${name}`);
    return make("div", { className: "row" }, box, ...(colorOf ? [swatch] : []), text, make("span", { className: "count", textContent: number(total) }), only);
  });
  const all = (state) => link(state ? "all" : "none", () => {
    on[key] = new Set(state ? everything()[key] : []);
    refreshBoxes();
    filter();
  });
  const top = make("div", { className: "top" }, make("h3", { textContent: heading }), all(true), all(false));
  $("#groups").append(make("div", { className: "group" }, top, ...rows));
}
function buildFilters() {
  boxes = [];
  $("#groups").replaceChildren();
  const inSplit = tally(split), inGroup = tally(group), inClass = tally(label);
  if (data.splits.length > 1) boxesOf("Split", "split", data.splits.map((name, s) => [s, name, inSplit.get(s)]));
  const ids = [...groups.keys(), ...(inGroup.has(-1) ? [-1] : [])];
  boxesOf(branchCount ? "Group" : "Cluster", "group", ids.map((g) => [g, short(g), inGroup.get(g) ?? 0]), (g) => groups.get(g).color, openGallery);
  if (!hasLabels) return;
  const classes = [...data.classes.keys(), ...(inClass.has(-1) ? [-1] : [])];
  boxesOf("Class", "label", classes.map((c) => [c, data.classes[c] ?? "no class", inClass.get(c) ?? 0]), (c) => data.classColors[c]);
}
function buildFlags() {
  for (const [box, rule, exists] of flags) {
    const row = $(box).parentElement;
    row.hidden = !exists;
    if (exists) row.querySelector(".count").textContent = number(Array.from({ length: count }, (_, i) => rule(i)).filter(Boolean).length);
    $(box).onchange = filter;
  }
}

// ---- download ------------------------------------------------------------------------------------

function csv() { // the rows of images.csv that are shown, as picture_table.py writes them
  const digits = (value) => String(Number(value.toPrecision(6)));
  const inert = (value) => (/^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(value) && isNaN(value) ? `'${value}` : value);
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = [["path", "cluster", "name", data.certainty, "distance", "unusual", "fine", "ignored", "split", "near_duplicates", "keep", "sharpness", "x", "y"]];
  for (let i = 0; i < count; i++) {
    if (!visible[i]) continue;
    const k = clusterOf[i], name = group[i] < 0 ? "" : calledOf(i) || unnamed(`cluster ${k}`);
    rows.push([nameOf(i), k, name, digits(certainty[i]), digits(distance[i]), unusual[i], fineOf[i], Number(group[i] < 0),
      data.splits[split[i]], near[i] < 0 ? "" : near[i], keep[i], isNaN(sharpness[i]) ? "" : digits(sharpness[i]), digits(xy[2 * i]), digits(xy[2 * i + 1])]);
  }
  return "\ufeff" + rows.map((row) => row.map((value) => cell(inert(String(value)))).join(",") + "\r\n").join("");
}
