// The buttons, and the start of the page.

$("#zoom-in").onclick = () => zoom(1.6);
$("#zoom-out").onclick = () => zoom(1 / 1.6);
$("#zoom-reset").onclick = reset;
$("#show-all").onclick = showAll;
$("#frame").onclick = () => {
  const removes = frame !== null;
  frame = null;
  setFraming(!removes && !framing);
  if (removes) filter();
};
$("#color").onchange = request;
$("#search").oninput = filter;
$("#save-csv").onclick = () => download("images.csv", "text/csv", csv());
$("#gallery-group").onchange = $("#gallery-order").onchange = () => { galleryLimit = 48; fillGallery(); };
$("#only-gallery").onclick = () => showOnly("group", Number($("#gallery-group").value));
$("#more").onclick = () => { galleryLimit += 96; fillGallery(); };
$("#all").onclick = () => { galleryLimit = Infinity; fillGallery(); };
$("#choose-gallery").onclick = () => choose(galleryImages());
$("#more-duplicates").onclick = () => { duplicatesLimit += 48; fillDuplicates(); };
$("#previous").onclick = () => step(-1);
$("#next").onclick = () => step(1);
$("#deselect").onclick = () => select(-1);
$("#branches").oninput = () => setBranches(Number($("#branches").value));
$("#as-clustered").onclick = () => setBranches(0);
$("#choosing").onclick = () => setChoosing(!choosing);
$("#chosen").onsubmit = (event) => { event.preventDefault(); moveChosen(); };
$("#ignore").onclick = ignoreChosen;
$("#choose-none").onclick = stopChoosing;
$("#merging").onsubmit = (event) => { event.preventDefault(); merge(); };
$("#pick-none").onclick = clearPicked;
$("#undo").onclick = undo;
$("#save-names").onclick = downloadNames;
document.addEventListener("keydown", (event) => {
  const types = event.target.matches("input[type=text], input[type=search]");
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !types) { event.preventDefault(); undo(); }
  if (event.key === "Escape" && !types) stopChoosing();
});

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("#theme").textContent = dark ? "Light" : "Dark";
  request();
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
prefersDark.onchange = () => setTheme(prefersDark.matches);
$("#theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");

document.title = `${data.title}: clusters`;
$("#title").textContent = data.title;
$("#summary").textContent = `${number(isSample ? point.count : count)} images, ${data.classOfCluster.length} clusters, ${data.method}.`
  + (isSample ? ` The map shows them all; pictures, search, filters and their numbers are those of a sample of ${number(count)}. images.csv has every image.` : "")
  + (hasPictures && pictured.length < count ? ` Pictures and neighbors come from a random sample of ${number(pictured.length)} images.` : "")
  + (hasPictures ? "" : " No pictures: the images were not available.");
const colorings = { label: ["class", hasLabels], certainty: [data.certainty, true], split: ["split", data.splits.length > 1], unusual: ["unusual", unusual.includes(1)] };
for (const [value, [textContent, exists]] of Object.entries(colorings)) if (exists) $("#color").append(make("option", { value, textContent }));
$("#amount").hidden = fineCount < 2;
$("#branches").max = fineCount;
$("#as-clustered").textContent = many(data.classOfCluster.length, "cluster");
$("#where").textContent = data.directory;
$("#what").textContent = data.command;
$("#dashed").hidden = !hasLabels;
$("#filters").open = !matchMedia("(max-width: 860px)").matches;
setTheme(prefersDark.matches);
buildFlags();
numberNodes();
restore();
groupAnew();
showChanges();
resize();
new ResizeObserver(resize).observe(map);
for (const id of ["bar", "actions"]) {
  new ResizeObserver(() => document.documentElement.style.setProperty(`--${id}`, `${$(`#${id}`).offsetHeight}px`)).observe($(`#${id}`));
}
requestAnimationFrame(() => setTimeout(() => { // after the first draw
  fillDuplicates();
  loadSheets();
}));
