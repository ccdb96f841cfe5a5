"use strict";
// The arrays, and pictures of single images. Names reach the document through textContent only.
const $ = (selector) => document.querySelector(selector);
const data = JSON.parse($("#data").textContent);
const TYPES = { f4: Float32Array, u4: Uint32Array, u2: Uint16Array, i2: Int16Array, u1: Uint8Array };

function bytes(id) {
  const text = atob(document.getElementById(id).textContent);
  const out = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) out[i] = text.charCodeAt(i);
  return out;
}
const array = (id) => new TYPES[document.getElementById(id).dataset.type](bytes(id).buffer);

const xy = array("xy"), cluster = array("cluster"), label = array("label"), split = array("split");
const distance = array("distance"), certainty = array("certainty"), pictured = array("pictured"), nearest = array("nearest");
const count = data.count, hasPictures = data.sheets > 0;
const tileOf = new Int32Array(count).fill(-1); // the number of the tile that shows an image
pictured.forEach((image, place) => { tileOf[image] = place; });
const isWrong = (i) => label[i] >= 0 && data.classOfCluster[cluster[i]] !== label[i];
const className = (c) => (c < 0 ? "unknown" : data.classes[c]);
const nameOf = (i) => (data.names ? data.names[i] : `${data.splits[split[i]]} ${i - data.offsets[split[i]]}`);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- pictures ------------------------------------------------------------------------------------

const sheets = [];
let sheetsLeft = data.sheets;
function loadSheets() { // after the first draw: decoding takes longer than everything else
  for (let s = 0; s < data.sheets; s++) {
    const image = new Image();
    image.onload = () => { sheets[s] = image; sheetsLeft--; waiting = waiting.filter((draw) => !draw()); request(); };
    image.src = URL.createObjectURL(new Blob([bytes(`sheet-${s}`)], { type: "image/webp" }));
  }
}
let waiting = []; // drawings to repeat once their sheet is decoded; true when done

function paint(context, i, x, y, size) {
  const place = tileOf[i], perSheet = data.columns ** 2, sheet = sheets[Math.floor(place / perSheet)];
  if (place < 0 || !sheet) return false;
  const at = place % perSheet, t = data.tile;
  context.drawImage(sheet, (at % data.columns) * t, Math.floor(at / data.columns) * t, t, t, x, y, size, size);
  return true;
}

function portrait(canvas, i) {
  canvas.hidden = !hasPictures || tileOf[i] < 0;
  if (canvas.hidden) return;
  canvas.width = canvas.height = data.tile;
  canvas.dataset.image = i;
  const draw = () => canvas.dataset.image !== String(i) || paint(canvas.getContext("2d"), i, 0, 0, data.tile);
  if (!draw()) waiting.push(draw);
}

function thumb(i) {
  const text = `${nameOf(i)}, class ${className(label[i])}, cluster ${data.clusters[cluster[i]]}`;
  const button = make("button", { type: "button", className: "thumb", title: text, onclick: () => select(i, true) });
  button.dataset.image = i;
  button.setAttribute("aria-label", text);
  button.classList.toggle("wrong", isWrong(i));
  if (hasPictures && tileOf[i] >= 0) {
    const canvas = make("canvas");
    portrait(canvas, i);
    button.append(canvas);
  } else {
    button.classList.add("plain");
    button.append(nameOf(i));
  }
  return button;
}
