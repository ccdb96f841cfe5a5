// The panels around the map: tip, selected image, gallery, classes in clusters, near-duplicates.

function hover(i, x = 0, y = 0) {
  if (i !== hovered) { hovered = i; request(); }
  const tip = $("#tip");
  tip.hidden = i < 0;
  if (i < 0) return;
  portrait(tip.firstElementChild, i);
  const lines = [nameOf(i), title(group[i])];
  if (label[i] >= 0) lines.push(`class ${data.classes[label[i]]}${isWrong(i) ? " (wrong)" : ""}`);
  if (hasPictures && tileOf[i] < 0) lines.push("its picture is not in this page");
  tip.lastElementChild.replaceChildren(...lines.map((line) => make("div", { textContent: line })));
  const right = x + 20 + tip.offsetWidth < map.clientWidth;
  tip.style.left = `${Math.max(0, right ? x + 14 : x - tip.offsetWidth - 14)}px`;
  tip.style.top = `${Math.max(0, Math.min(y + 14, map.clientHeight - tip.offsetHeight))}px`;
}

// ---- selected image ------------------------------------------------------------------------------

function select(i, show = false) {
  selected = i;
  $("#nothing").hidden = i >= 0;
  $("#detail").hidden = i < 0;
  if (i >= 0 && !["all", String(group[i])].includes($("#gallery-group").value)) { showInGallery(group[i]); fillGallery(); }
  for (const button of document.querySelectorAll(".thumb")) button.setAttribute("aria-current", Number(button.dataset.image) === i);
  request();
  if (i < 0) return;
  portrait($("#portrait canvas"), i);
  $("#portrait dl").replaceChildren(...facts(i).flatMap(([k, v]) => [make("dt", { textContent: k }), make("dd", {}, v)]));
  const k = nearest.length / count, places = Array.from(nearest.subarray(i * k, (i + 1) * k));
  fill($("#neighbors"), places.map((place) => pictured[place]));
  if (show) {
    const x = screenX(i), y = screenY(i);
    if (x < 0 || y < 0 || x > wide || y > high) { view.x = xy[2 * i]; view.y = xy[2 * i + 1]; }
  }
}

function facts(i) {
  const image = data.folder ? make("a", { href: linkTo(i), target: "_blank", rel: "noopener", title: "Open the original picture", textContent: nameOf(i) }) : nameOf(i);
  const list = [["Image", image], [branchCount ? "Group" : "Cluster", short(group[i])]];
  if (branchCount || group[i] !== clusterOf[i]) list.push([branchCount ? "Cluster" : "Found in", String(clusterOf[i])]);
  if (label[i] >= 0) list.push(["Class", `${data.classes[label[i]]}${isWrong(i) ? " (wrong)" : ""}`]);
  if (data.splits.length > 1) list.push(["Split", data.splits[split[i]]]);
  list.push([data.certainty[0].toUpperCase() + data.certainty.slice(1), certainty[i].toFixed(3)], ["Distance", `${distance[i].toFixed(3)}${unusual[i] ? " (unusual)" : ""}`]);
  if (near[i] >= 0) list.push(["Near-duplicates", `${tally(near).get(near[i])} images in group ${near[i]}${keep[i] ? ", keep this one" : ""}`]);
  return list;
}

function step(direction) { // to the next visible image of the same cluster, by distance to its centroid
  const from = selected < 0 ? nearestTo(wide / 2, high / 2, Infinity) : selected;
  if (from < 0) return;
  const order = members(group[from], "nearest"), at = order.indexOf(from);
  select(order[(at + direction + order.length) % order.length] ?? from, true);
}

// ---- gallery -------------------------------------------------------------------------------------

function shuffled(i) { // a number that says nothing about the image, always the same: MurmurHash3's last step
  i = Math.imul(i ^ (i >>> 16), 0x85ebca6b);
  i = Math.imul(i ^ (i >>> 13), 0xc2b2ae35);
  return (i ^ (i >>> 16)) >>> 0;
}

function members(g, order) { // the visible images of a group, or of all
  const list = [];
  for (let i = 0; i < count; i++) if (visible[i] && (g === "all" || group[i] === g)) list.push(i);
  const key = { nearest: (i) => distance[i], certain: (i) => -certainty[i], unsure: (i) => certainty[i], farthest: (i) => -distance[i], random: (i) => shuffled(i + 1) }[order];
  return list.sort((a, b) => key(a) - key(b) || a - b);
}

let galleryLimit = 48;
const galleryGroup = () => ($("#gallery-group").value === "all" ? "all" : Number($("#gallery-group").value));
const galleryImages = () => members(galleryGroup(), $("#gallery-order").value);
function buildGallery() {
  const choices = [make("option", { value: "all", textContent: "all images shown" }), ...[...groups.keys(), ...(group.includes(-1) ? [-1] : [])].map((g) => make("option", { value: g, textContent: title(g) }))];
  const before = $("#gallery-group").value;
  $("#gallery-group").replaceChildren(...choices);
  $("#gallery-group").value = choices.some(({ value }) => value === before) ? before : choices[1].value;
}
function fillGallery() {
  const g = galleryGroup(), list = galleryImages();
  const pictures = hasPictures ? list.filter((i) => tileOf[i] >= 0) : list;
  const heading = g === "all" ? "All images shown" : title(g);
  $("#gallery-title").textContent = `${heading[0].toUpperCase()}${heading.slice(1)}: ${many(list.length, "image")}`;
  $("#only-gallery").hidden = g === "all";
  fill($("#gallery-grid"), pictures.slice(0, galleryLimit), true);
  $("#more").hidden = $("#all").hidden = pictures.length <= galleryLimit;
}
function showInGallery(g) {
  $("#gallery-group").value = g;
  galleryLimit = 48;
}
function openGallery(g) {
  showInGallery(g);
  fillGallery();
  $("#gallery").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

// ---- classes in clusters -------------------------------------------------------------------------

const CELLS = 40000; // more would make the page slow
function fillCrossing() { // its own filters, cluster and class, do not apply to its numbers
  $("#crossing").hidden = !hasLabels || data.classes.length * groups.size > CELLS;
  if ($("#crossing").hidden) return;
  const table = data.classes.map(() => ({}));
  for (let i = 0; i < count; i++) if (label[i] >= 0 && passes(i)) table[label[i]][group[i]] = (table[label[i]][group[i]] ?? 0) + 1;
  const classOf = (g) => (branchCount ? undefined : data.classOfCluster[g]) ?? data.classes.indexOf(calledOfGroup(g));
  const place = (g) => classOf(g) + 1 || data.classes.length + 1;
  const order = [...groups.keys()].sort((a, b) => place(a) - place(b)); // correct ones on the diagonal
  const corner = make("tr", {}, make("th", { textContent: `class \\ ${branchCount ? "group" : "cluster"}` }), ...order.map((g) => make("th", { textContent: short(g) })));
  const rows = table.map((cells, c) => {
    const total = Object.values(cells).reduce((a, b) => a + b, 0) || 1;
    return make("tr", {}, make("th", { textContent: data.classes[c] }), ...order.map((g) => {
      const n = cells[g] ?? 0;
      const button = make("button", { type: "button", tabIndex: -1, disabled: !n, textContent: n || "", onclick: () => crossed(c, g) });
      button.setAttribute("aria-label", `${n} images of class ${data.classes[c]} in ${title(g)}`);
      button.setAttribute("aria-pressed", on.label.size === 1 && on.label.has(c) && on.group.size === 1 && on.group.has(g));
      const cell = make("td", {}, button);
      cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round((75 * n) / total)}%, transparent)`;
      return cell;
    }));
  });
  $("#crossing table").replaceChildren(make("thead", {}, corner), make("tbody", {}, ...rows));
  const first = $("#crossing button:not(:disabled)");
  if (first) first.tabIndex = 0;
}
function crossed(c, g) {
  on.label = new Set([c]);
  showOnly("group", g);
  $("#gallery").scrollIntoView();
}

// ---- near-duplicates -----------------------------------------------------------------------------

let duplicatesLimit = 12;
function fillDuplicates() {
  const sets = new Map();
  near.forEach((group, i) => { if (group >= 0) sets.set(group, [...(sets.get(group) ?? []), i]); });
  const list = [...sets].sort((a, b) => b[1].length - a[1].length || a[0] - b[0]);
  const splitsOf = (members) => data.splits.filter((_, s) => members.some((i) => split[i] === s));
  const across = list.filter(([, members]) => splitsOf(members).length > 1).length;
  $("#duplicates").hidden = !list.length;
  const images = list.reduce((sum, [, members]) => sum + members.length, 0);
  $("#duplicates .hint").textContent = `${number(images)} images in ${number(list.length)} groups that look almost the same, largest first. Each copy counts in every score. To keep: the copy with the most pixels, then bytes.${
    across ? ` ${number(across)} of these groups lie in more than one split, so splits share pictures.` : ""}`;
  $("#duplicates div").replaceChildren(...list.slice(0, duplicatesLimit).map(([group, members]) => {
    const grid = make("div", { className: "grid roving" });
    fill(grid, [...members].sort((i, j) => keep[j] - keep[i]).slice(0, 24));
    const more = members.length > 24 ? `, 24 of its ${number(members.length)} images` : "";
    const places = splitsOf(members).length > 1 ? `, in ${splitsOf(members).join(" and ")}` : "";
    const best = members.find((i) => keep[i]), advice = best === undefined ? "" : `, keep ${nameOf(best)}`; // a sample may lack it
    return make("div", {}, make("h3", { textContent: `Group ${group}${places}${more}${advice}` }), grid);
  }));
  $("#more-duplicates").hidden = list.length <= duplicatesLimit;
}
