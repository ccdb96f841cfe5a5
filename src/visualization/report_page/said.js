// What a person said: names of clusters, fine clusters and single images, and images to ignore; undone, kept in the
// browser, and downloaded as names.json, which the commands read.

const PAGE = data.said; // what names.json said when the page was made, by kind and key; an ignored image is true
const STORED = `simclr-clusters said ${data.namesFile.clusters}`;
let said = PAGE, downloaded = PAGE;
const history = [];

function changed(state, changes) { // a copy; an empty value removes
  const next = Object.fromEntries(Object.entries(state).map(([kind, values]) => [kind, { ...values }]));
  for (const { kind, key, to } of changes) {
    if (to) next[kind][key] = to;
    else delete next[kind][key];
  }
  return next;
}
function differences(before, after) {
  return Object.keys(after).flatMap((kind) => [...new Set([...Object.keys(before[kind]), ...Object.keys(after[kind])])]
    .map((key) => ({ kind, key, from: before[kind][key] ?? "", to: after[kind][key] ?? "" })).filter(({ from, to }) => from !== to));
}

function say(changes, what) {
  history.push(said);
  said = changed(said, changes);
  told(what);
}
function undo() {
  if (!history.length) return;
  said = history.pop();
  told("Undone");
}
function told(what) {
  store();
  regroup();
  showChanges(what);
}

function showChanges(what = "") {
  const unsaved = differences(downloaded, said).length, isNews = differences(PAGE, said).length > 0;
  $("#changes").hidden = !unsaved && !isNews && !history.length;
  $("#told").textContent = [what, unsaved && `${many(unsaved, "change")} not downloaded`].filter(Boolean).join("; ");
  $("#undo").disabled = !history.length;
  $("#then").hidden = unsaved > 0 || !isNews;
  window.onbeforeunload = unsaved && !isStored ? (event) => event.preventDefault() : null;
}

// ---- in the browser ------------------------------------------------------------------------------

let isStored = true;
function store(state = said) {
  try {
    const kept = { said: differences(PAGE, state), downloaded: differences(PAGE, downloaded), branchCount };
    localStorage.setItem(STORED, JSON.stringify(kept));
  } catch { // browsers may refuse storage to pages from disk
    isStored = false;
  }
}
function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORED)) ?? { said: [], downloaded: [], branchCount: 0 };
    // A page made again with another name is newer than what was said in the browser.
    const still = (changes) => changed(PAGE, changes.filter(({ kind, key, from }) => (PAGE[kind][key] ?? "") === from));
    [said, downloaded] = [still(kept.said), still(kept.downloaded)];
    branchCount = Math.min(kept.branchCount, fineCount);
  } catch {
    isStored = false;
    $("#stored").hidden = true;
  }
}

// ---- names.json ----------------------------------------------------------------------------------

function namesFile() {
  return `${JSON.stringify({ ...data.namesFile, ...said, ignored: Object.keys(said.ignored) }, null, 2)}\n`;
}
function downloadNames() {
  download("names.json", "application/json", namesFile());
  downloaded = said;
  store();
  showChanges("Downloaded");
}
