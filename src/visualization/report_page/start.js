// The buttons, and the start of the page.

$("#zoom-in").onclick = () => zoom(1.6);
$("#zoom-out").onclick = () => zoom(1 / 1.6);
$("#zoom-reset").onclick = reset;
$("#show-all").onclick = showAll;
$("#frame").onclick = () => {
  const removes = frame !== null;
  frame = null;
  setFraming(!removes && !framing);
  if (removes) applyFilters();
};
$("#color").onchange = request;
$("#search").oninput = applyFilters;
$("#save-csv").onclick = () => download("images.csv", "text/csv", csv());
$("#save-names").onclick = () => download("names.json", "application/json", namesFile());
$("#gallery-cluster").onchange = $("#gallery-order").onchange = () => { galleryLimit = 48; fillGallery(); };
$("#only-gallery").onclick = () => showOnly("cluster", Number($("#gallery-cluster").value));
$("#more").onclick = () => { galleryLimit += 96; fillGallery(); };
$("#more-duplicates").onclick = () => { duplicatesLimit += 48; fillDuplicates(); };
$("#previous").onclick = () => step(-1);
$("#next").onclick = () => step(1);
$("#deselect").onclick = () => select(-1);

function setTheme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("#theme").textContent = dark ? "Light" : "Dark";
  request();
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
prefersDark.onchange = () => setTheme(prefersDark.matches);
$("#theme").onclick = () => setTheme(document.documentElement.dataset.theme !== "dark");

document.title = `Clusters of ${data.dataset}`;
$("#dataset").textContent = data.dataset;
$("#summary").textContent = `${number(count)} images, ${data.givenNames.length} clusters, ${data.method}.`
  + (hasPictures && pictured.length < count ? ` Pictures and neighbors come from a random sample of ${number(pictured.length)} images.` : "")
  + (hasPictures ? "" : " No pictures: the images were not available.");
if (hasLabels) $("#color").append(make("option", { value: "label", textContent: "class" }));
$("#dashed").hidden = !hasLabels;
$("#filters").open = !matchMedia("(max-width: 860px)").matches;
setTheme(prefersDark.matches);
buildFlags();
restoreNames();
regroup();
resize();
new ResizeObserver(resize).observe(map);
requestAnimationFrame(() => setTimeout(() => { // after the first draw
  buildNaming();
  fillDuplicates();
  loadSheets();
}));
