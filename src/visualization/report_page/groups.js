// The group of each image: by what was said of it, its fine cluster or its cluster. Images without a name are grouped
// by cluster, or by as many branches of the tree above the fine clusters as a person chose.

// ---- the tree ------------------------------------------------------------------------------------

const fineCount = data.tree.length + 1, ROOT = 2 * fineCount - 2; // row m of the tree joins two nodes into fineCount + m
// The nodes below a node at which a number of branches of the whole tree end, in its order.
const branches = (node, total) => (node > 2 * fineCount - 1 - total ? data.tree[node - fineCount].flatMap((below) => branches(below, total)) : [node]);
const leaves = (node) => branches(node, fineCount);

// Where a node divides, its larger part keeps the number, and so the color; the other part gets the next number.
const numberOf = [];
function numberNodes() {
  const sizes = tally(fineOf), size = (node) => leaves(node).reduce((sum, f) => sum + sizes.get(f), 0);
  numberOf[ROOT] = 0;
  for (let m = fineCount - 2; m >= 0; m--) {
    const [large, small] = [...data.tree[m]].sort((a, b) => size(b) - size(a));
    numberOf[large] = numberOf[fineCount + m];
    numberOf[small] = fineCount - 1 - m;
  }
}

// ---- groups --------------------------------------------------------------------------------------

let branchCount = 0; // 0 for the clusters
let groups = new Map(); // in the order of the tree, by number: name, numbers of its units, color. A name is one group.
let taken = new Set(); // the names that were given, and those of classes
let rows = []; // what can be named: every unit (a cluster or branch), and the names that no unit has
let group = new Int32Array(count); // of each image; -1 if it is ignored
const groupOfPoint = new Int32Array(point.count);

const clusterName = (k, state = said) => state.names[k] || (data.classes[data.classOfCluster[k]] ?? "");
const fineName = (f) => said.fine[f] ?? "";
function unnamed(text) { // what something without a name is called: it joins nothing, as in groups.py
  while (taken.has(text)) text = `unnamed ${text}`;
  return text;
}
const calledOf = (i) => said.moved[nameOf(i)] || fineName(fineOf[i]) || clusterName(clusterOf[i]); // in all tables

const numberOfNames = new Map(); // of groups that are no unit, so that filters, gallery and rows know them again
let nextNumber = Math.max(fineCount, data.classOfCluster.length);
function numberOfName(name) {
  if (!numberOfNames.has(name)) numberOfNames.set(name, nextNumber++);
  return numberOfNames.get(name);
}
function keepNumber(before, name) { // when all of a group is renamed
  if (numberOfNames.has(name)) return;
  numberOfNames.set(name, numberOfName(before));
  numberOfNames.delete(before);
}

const clusterUnits = () => data.classOfCluster.map((_, k) => ({ number: k, name: clusterName(k), given: said.names[k] ?? "", color: data.clusterColors[k], leaves: [] }));
const branchUnits = () => branches(ROOT, branchCount).map((node) => {
  const names = [...new Set(leaves(node).map(fineName))], name = names.length > 1 ? "" : names[0];
  const fine = leaves(node).filter((f) => fineName(f) === name); // those that have another name are no part of it
  return { number: numberOf[node], name, given: name, color: data.colors[numberOf[node]], leaves: leaves(node), fine };
});

function arrange() { // groups, rows and the group of each image
  const units = branchCount ? branchUnits() : clusterUnits(), byName = new Map(), rowOfUnit = [], unitOfFine = [];
  taken = new Set([...data.classes, ...[said.names, said.fine, said.moved].flatMap(Object.values)]);
  groups = new Map();
  rows = [];
  function add(name, unit) {
    if (!name && !unit) return;
    const isNew = !name || !byName.has(name), id = isNew ? unit?.number ?? numberOfName(name) : byName.get(name);
    if (name) byName.set(name, id);
    if (isNew) groups.set(id, { name, units: [], color: unit?.color ?? data.colors[id % data.colors.length] });
    if (unit) groups.get(id).units.push(unit.number);
    if (isNew || unit) rows.push({ key: unit ? `unit ${unit.number}` : `group ${id}`, id, name, given: unit ? unit.given : name, unit, images: [] });
  }
  for (const unit of units) {
    if (unit.fine?.length !== 0) add(unit.name, unit), rowOfUnit[unit.number] = rows.at(-1);
    for (const f of unit.leaves) { add(fineName(f)); unitOfFine[f] = unit.number; }
  }
  for (let f = 0; f < fineCount; f++) add(fineName(f));
  for (const name of Object.values(said.moved)) add(name);
  rows = rows.filter((row) => row.unit || !groups.get(row.id).units.length);

  const named = Array.from({ length: fineCount }, (_, f) => byName.get(fineName(f)));
  const unitOf = (i) => (branchCount ? unitOfFine[fineOf[i]] : clusterOf[i]);
  for (let i = 0; i < count; i++) group[i] = named[fineOf[i]] ?? rowOfUnit[unitOf(i)].id;
  for (const [key, name] of Object.entries(said.moved)) if (imageNamed.has(key)) group[imageNamed.get(key)] = byName.get(name);
  for (const key in said.ignored) if (imageNamed.has(key)) group[imageNamed.get(key)] = -1;
  for (let p = 0; p < point.count; p++) {
    const fine = point.fine[p];
    groupOfPoint[p] = named[fine] ?? rowOfUnit[branchCount ? unitOfFine[fine] : point.cluster[p]].id;
  }
  const first = new Map([...rows].reverse().map((row) => [row.id, row]));
  for (let i = 0; i < count; i++) {
    const own = rowOfUnit[unitOf(i)];
    if (group[i] >= 0) (own?.id === group[i] ? own : first.get(group[i])).images.push(i);
  }
  for (const row of rows) row.called = row.name || mostFrequent(row.images.map(calledOf));
}
const mostFrequent = (values) => [...tally(values)].sort((a, b) => b[1] - a[1])[0]?.[0] ?? "";

const calledOfGroup = (id) => rows.find((row) => row.id === id).called;
function short(id) {
  if (id < 0) return "ignored";
  const { name, units } = groups.get(id), called = calledOfGroup(id);
  return [units.join(" + "), name && units.length ? "→" : "", name || (called && `(${called})`)].filter(Boolean).join(" ");
}
function title(id) {
  const { name, units } = groups.get(id) ?? { units: [] };
  if (!units.length) return short(id);
  const text = `${branchCount ? "group" : "cluster"}${units.length > 1 ? "s" : ""} ${short(id)}`;
  return name ? text : unnamed(text);
}

function regroup() {
  const before = groups;
  arrange();
  on.group = new Set([-1, ...[...groups.keys()].filter((id) => on.group.has(id) || !before.has(id))]);
  show();
}
function setBranches(total) {
  branchCount = total;
  store();
  groupAnew();
}
function groupAnew() {
  arrange();
  on.group = everything().group;
  show();
}
function show() { // the groups, everywhere
  $("#branches").value = branchCount || data.classOfCluster.length;
  $("#branches-shown").textContent = branchCount || groups.size;
  $("#as-clustered").setAttribute("aria-pressed", !branchCount);
  buildFilters();
  buildGallery();
  applyFilters();
  if (selected >= 0) select(selected);
  $("#targets").replaceChildren(...[...groups.keys()].map((id) => make("option", { value: groups.get(id).name || title(id) })));
  postpone(fillCrossing);
  postpone(updateNaming);
}

// ---- what to say so that a row has a name --------------------------------------------------------

const fineOfRow = (row) => (row.unit ? row.unit.fine : Object.keys(said.fine).filter((f) => said.fine[f] === row.name).map(Number));
function renamed(rows, name) {
  const changes = rows.flatMap((row) => fineOfRow(row)?.map((f) => ({ kind: "fine", key: f, to: name })) ?? [{ kind: "names", key: row.unit.number, to: name }]);
  return [...changes, ...followed(rows, changes, name)];
}
function followed(rows, changes, name) { // images that were moved to a name stay with it, whatever it becomes
  const after = changed(said, changes), left = [...Object.values(after.fine), ...data.classOfCluster.map((_, k) => clusterName(k, after))];
  const names = rows.filter((row) => row.name && !left.includes(row.name) && (name || !row.unit)).map((row) => row.name);
  return Object.keys(said.moved).filter((key) => names.includes(said.moved[key])).map((key) => ({ kind: "moved", key, to: name }));
}
function divided(row) { // in two, where the tree divides it
  const own = fineOfRow(row);
  let parts, node = ROOT;
  for (;;) {
    const below = data.tree[node - fineCount];
    parts = below.map((child) => leaves(child).filter((f) => own.includes(f)));
    if (parts[0].length && parts[1].length) break;
    node = below[parts[0].length ? 0 : 1];
  }
  const [first, second] = endings(clean(row.name || title(row.id)));
  const changes = parts.flatMap((part, p) => part.map((f) => ({ kind: "fine", key: f, to: [first, second][p] })));
  return [...changes, ...followed([row], changes, first)];
}
function* endings(name) { // the name with a letter, or then a number, that no group has
  for (let n = 0; ; n++) {
    const next = `${name} ${"abcdefghijklmnopqrstuvwxyz"[n] ?? n + 1}`;
    if (!taken.has(next)) yield next;
  }
}
const clean = (name) => name.normalize("NFC").replace(/[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]/gu, "").trim();
