// The rows in which groups are named, chosen and merged, each with the pictures that stand for it.

const elements = new Map(); // of the rows, by key: an input keeps its focus while rows change around it
const limits = new Map(); // how many pictures a row shows, where it is not ROW
const ROW = 9;
const picked = new Set(); // keys of the rows chosen for merging
const rowOf = (key) => rows.find((row) => row.key === key);

function updateNaming() {
  const keys = new Set(rows.map(({ key }) => key)), list = $("#names");
  for (const [key, element] of elements) if (!keys.has(key)) { element.remove(); elements.delete(key); picked.delete(key); }
  rows.forEach((row, place) => {
    if (!elements.has(row.key)) elements.set(row.key, namingRow(row.key));
    const element = elements.get(row.key);
    updateRow(element, row);
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
  });
  showPicked();
}

function namingRow(key) {
  const box = make("input", { type: "checkbox", onchange: () => { picked[box.checked ? "add" : "delete"](key); showPicked(); } });
  const input = make("input", { type: "text", maxLength: 60, spellcheck: false });
  // Kept at every key, as the page may be closed in the middle of typing.
  input.oninput = () => store(changed(said, renamed([rowOf(key)], clean(input.value))));
  input.onchange = () => {
    const row = rowOf(key), name = clean(input.value);
    input.value = name;
    if (!row.unit && name) keepNumber(row.name, name);
    if (name !== row.given) say(renamed([row], name));
  };
  const halve = make("button", { type: "button", className: "halve", textContent: "Split", onclick: () => say(divided(rowOf(key)), "Split in two") });
  const more = make("button", { type: "button", className: "more", textContent: "More", onclick: () => { limits.set(key, (limits.get(key) ?? ROW) + 48); updateRow(element, rowOf(key)); } });
  const label = make("label", {}, box, make("span", { className: "swatch" }), make("span", { className: "caption" }));
  const element = make("div", { className: "naming" }, make("div", { className: "label" }, label, halve, more, input), make("div", { className: "grid roving" }));
  return element;
}

function updateRow(element, row) {
  const caption = row.unit ? `${branchCount ? "Group" : "Cluster"} ${row.unit.number}` : "By name", thing = row.unit ? caption.toLowerCase() : row.name;
  const [box, input] = element.querySelectorAll("input"), limit = limits.get(row.key) ?? ROW;
  element.querySelector(".caption").textContent = caption;
  element.querySelector(".swatch").style.setProperty("--color", groups.get(row.id).color);
  box.setAttribute("aria-label", `choose ${thing}`);
  box.checked = picked.has(row.key);
  input.setAttribute("aria-label", `name of ${thing}`);
  input.placeholder = row.called || "name";
  if (input !== document.activeElement) input.value = row.given;
  const halve = element.querySelector(".halve"), more = element.querySelector(".more");
  halve.hidden = !(fineOfRow(row)?.length > 1);
  halve.setAttribute("aria-label", `split ${thing}`);
  const pictures = hasPictures ? row.images.filter((i) => tileOf[i] >= 0) : row.images;
  const order = branchCount ? (a, b) => fineDistance[a] - fineDistance[b] : (a, b) => certainty[b] - certainty[a];
  fill(element.querySelector(".grid"), pictures.sort((a, b) => order(a, b) || a - b).slice(0, limit));
  more.hidden = pictures.length <= limit;
  more.setAttribute("aria-label", `more of ${thing}`);
}

// ---- merging -------------------------------------------------------------------------------------

const pickedRows = () => rows.filter(({ key }) => picked.has(key));
function showPicked() {
  $("#merging").hidden = !picked.size;
  $("#picked-count").textContent = `${many(picked.size, "group")} chosen`;
  $("#merge").disabled = picked.size < 2;
  $("#merged-name").placeholder = mergedName();
}
function mergedName() {
  const chosen = pickedRows();
  return chosen.map(({ name }) => clean(name)).find(Boolean) ?? (chosen.length ? clean(title(chosen[0].id)) : "");
}
function merge() {
  const name = clean($("#merged-name").value) || mergedName(), chosen = pickedRows();
  clearPicked();
  say(renamed(chosen, name), `${many(chosen.length, "group")} merged into ${name}`);
}
function clearPicked() {
  picked.clear();
  $("#merged-name").value = "";
  for (const element of elements.values()) element.querySelector("input").checked = false;
  showPicked();
}
