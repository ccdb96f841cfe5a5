// Names that a person gives to clusters, and names.json, which the commands read.

const PAGE_NAMES = [...data.givenNames]; // those of names.json when the page was made
const STORED = `simclr-clusters names ${data.clustersId}`;

// By cluster: the name typed in this browser, and the page's name that it replaces. A page made again with
// another name for the cluster is newer than what was typed.
function storedNames(change = {}) {
  try {
    const entries = Object.entries({ ...JSON.parse(localStorage.getItem(STORED)), ...change });
    const names = Object.fromEntries(entries.filter(([k, { replaces }]) => replaces === PAGE_NAMES[k]));
    localStorage.setItem(STORED, JSON.stringify(names));
    return names;
  } catch { // browsers may refuse storage to pages from disk
    $("#stored").hidden = true;
    return {};
  }
}
function restoreNames() {
  for (const [k, { typed }] of Object.entries(storedNames())) data.givenNames[k] = typed;
}

const clean = (name) => name.normalize("NFC").replace(/[\p{Cc}\p{Cs}\p{Zl}\p{Zp}]/gu, "").trim();

function buildNaming() {
  $("#names").replaceChildren(...data.givenNames.map((given, k) => {
    const input = make("input", { type: "text", value: given, maxLength: 60, placeholder: data.classes[data.classOfCluster[k]] ?? "name", spellcheck: false });
    input.setAttribute("aria-label", `name of cluster ${k}`);
    input.oninput = () => storedNames({ [k]: { typed: clean(input.value), replaces: PAGE_NAMES[k] } });
    input.onchange = () => {
      input.value = data.givenNames[k] = clean(input.value);
      regroup();
    };
    const own = Array.from({ length: count }, (_, i) => i).filter((i) => clusterOf[i] === k && (!hasPictures || tileOf[i] >= 0));
    const grid = make("div", { className: "grid roving" });
    fill(grid, own.sort((a, b) => distance[a] - distance[b] || a - b).slice(0, 8));
    const swatch = make("span", { className: "swatch" });
    swatch.style.setProperty("--color", data.clusterColors[k]);
    return make("div", { className: "naming" }, make("label", {}, swatch, `Cluster ${k}`, input), grid);
  }));
}

function regroup() { // by the names
  mergeNames();
  on = { ...(on ?? everything()), cluster: everything().cluster };
  buildFilters();
  buildGallery();
  applyFilters();
  if (selected >= 0) select(selected);
}

function namesFile() {
  const names = Object.fromEntries([...data.givenNames.entries()].filter(([, name]) => name));
  return `${JSON.stringify({ clusters: data.clustersId, names }, null, 2)}\n`;
}
