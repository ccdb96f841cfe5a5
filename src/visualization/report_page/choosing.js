// Pictures that a person chooses, to move them to another group or to ignore them.

const chosen = new Set();
let choosing = false; // whether a click chooses, and a drag on the map draws a lasso
let anchor = null; // the grid and the image from which Shift chooses

function choose(images, state = true) {
  for (const i of images) chosen[state ? "add" : "delete"](i);
  for (const button of document.querySelectorAll(".thumb")) button.setAttribute("aria-pressed", chosen.has(Number(button.dataset.image)));
  $("#chosen").hidden = !chosen.size;
  $("#chosen-count").textContent = `${many(chosen.size, "picture")} chosen`;
  $("#ignore").textContent = isIgnored() ? "Do not ignore" : "Ignore";
  request();
}
const isIgnored = () => [...chosen].every((i) => group[i] < 0);
const toggle = (i) => choose([i], !chosen.has(i));

function chooseThumb(button, withRange) { // or all from the last chosen one on
  const grid = button.parentElement, all = [...grid.querySelectorAll(".thumb")], i = Number(button.dataset.image);
  const from = anchor?.grid === grid && withRange ? all.findIndex((other) => Number(other.dataset.image) === anchor.image) : -1;
  if (from < 0) toggle(i);
  else {
    const to = all.indexOf(button);
    choose(all.slice(Math.min(from, to), Math.max(from, to) + 1).map((other) => Number(other.dataset.image)));
  }
  anchor = { grid, image: i };
}
document.addEventListener("click", (event) => {
  const button = event.target.closest(".thumb");
  if (!button) return;
  if (choosing || event.shiftKey || event.ctrlKey || event.metaKey) chooseThumb(button, event.shiftKey);
  else select(Number(button.dataset.image), true);
});
for (const kind of ["keydown", "keyup"]) document.addEventListener(kind, (event) => { // Enter selects
  const button = event.target.closest(".thumb");
  if (!button || event.key !== " ") return;
  event.preventDefault();
  if (kind === "keydown") chooseThumb(button, event.shiftKey);
});

function setChoosing(state) {
  choosing = state;
  document.body.classList.toggle("choosing", state);
  $("#choosing").setAttribute("aria-pressed", state);
}
function stopChoosing() {
  setChoosing(false);
  choose([...chosen], false);
}

function moveChosen() {
  const text = clean($("#target").value);
  if (!text) return $("#target").focus();
  const [id, known] = [...groups].find(([id, { name }]) => name === text) ?? [...groups].find(([id]) => title(id) === text) ?? [];
  // A group without a name needs one, as a picture is moved to a name.
  const naming = known && !known.name ? renamed(rows.filter((row) => row.id === id), text) : [];
  const moves = [...chosen].flatMap((i) => [{ kind: "moved", key: nameOf(i), to: text }, { kind: "ignored", key: nameOf(i), to: "" }]);
  $("#target").value = "";
  sayOfChosen([...naming, ...moves], `moved to ${text}`);
}
function ignoreChosen() {
  const ignored = !isIgnored();
  sayOfChosen([...chosen].map((i) => ({ kind: "ignored", key: nameOf(i), to: ignored })), ignored ? "ignored" : "no longer ignored");
}
function sayOfChosen(changes, what) {
  const text = `${many(chosen.size, "picture")} ${what}`;
  choose([...chosen], false);
  say(changes, text);
}
