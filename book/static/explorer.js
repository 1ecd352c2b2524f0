/* The controls of the page: each change generates the images anew and says in words what they are.
 * The rest of the page is in book/explorer.md, and the forward pass in generator.js.
 */
"use strict";

const LATENT_DIM = 100;  // the original recipe's; the tuned one takes the first 64 elements
const COLUMNS = 5, GAP = 2;  // of a class grid, and the pixels between its images
const SECONDS = 0.8;  // that the animation shows an epoch

const { classes } = generators.original;
const recipes = Object.keys(generators);
const epochImages = Float32Array.from(atob(epochBytes), (c) => c.charCodeAt(0) / 127.5 - 1);

/* Sample z ~ N(0, I). The same seed gives the same z, but not the one of PyTorch's rng. */
function sampleLatent(seed) {
  let state = seed;
  const uniform = () => {  // in (0, 1], by the rng mulberry32
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), state | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return (((bits ^ (bits >>> 14)) >>> 0) + 1) / 2 ** 32;
  };
  const normal = () =>  // by the method of Box and Muller
    Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  return Float32Array.from({ length: LATENT_DIM }, normal);
}

/* The point on the arc that is `amount` (0 to 1) of the way to end: see notebook 04. */
function arc(start, end, amount) {
  const product = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const cosine = product(start, end) / Math.sqrt(product(start, start) * product(end, end));
  const angle = Math.acos(cosine);
  const fromStart = Math.sin((1 - amount) * angle) / Math.sin(angle);
  const fromEnd = Math.sin(amount * angle) / Math.sin(angle);
  return start.map((value, i) => fromStart * value + fromEnd * end[i]);
}

/* z on the way from the z of a seed to that of the next, at the generator's own scale. */
function walkedLatent(generator, seed, walk) {
  const [start, end] = [seed, seed + 1].map((s) => sampleLatent(s).slice(0, generator.latentDim));
  return arc(start, end, walk).map((value) => generator.latentScale * value);
}

/* A point on the straight line between two rows of the generator's embedding table. */
function blendedEmbedding(generator, first, second, amount) {
  const end = generator.embedding(second);
  return generator.embedding(first).map((value, i) => value + amount * (end[i] - value));
}

/* Show an image, from -1 to 1, with its corner at pixel x, y of a canvas. */
function show(image, canvas, x = 0, y = 0) {
  const pixels = new ImageData(SIDE, SIDE);
  for (let i = 0; i < image.length; i++) {
    const grey = Math.round((image[i] + 1) * 127.5);
    pixels.data.set([grey, grey, grey, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, x, y);
}

const element = (id) => document.getElementById(id);
const numberOf = (id) => Number(element(id).value);
const describe = (id, text) => element(id).setAttribute("aria-label", text);

function showPair() {
  const first = numberOf("class"), second = numberOf("blend-with"), blend = numberOf("blend");
  const seed = numberOf("seed"), walk = numberOf("walk");
  let text = classes[first];
  if (blend > 0) text += `, blended ${blend}% with ${classes[second]}`;
  for (const recipe of recipes) {
    const generator = generators[recipe];
    const z = walkedLatent(generator, seed, walk / 100);
    const embedded = blendedEmbedding(generator, first, second, blend / 100);
    show(generator.decode(z, embedded), element(recipe));
    describe(recipe, `Image by the ${recipe} generator: ${text}`);
  }
  text += `; z of seed ${seed}`;
  if (walk > 0) text += `, ${walk}% of the way to seed ${seed + 1}`;
  announce("shown", text);
}

function showGrids() {
  const seed = numberOf("seed"), walk = numberOf("walk");
  for (const recipe of recipes) {
    for (let column = 0; column < COLUMNS; column++) {
      const z = walkedLatent(generators[recipe], seed + column, walk / 100);
      const images = sample(recipe, [...classes.keys()], classes.map(() => z));
      images.forEach((image, row) =>
        show(image, element(`${recipe}-grid`), column * (SIDE + GAP), row * (SIDE + GAP)));
    }
    describe(`${recipe}-grid`, `Class grid of the ${recipe} generator: the ten classes in rows, ` +
      `the z of seeds ${seed} to ${seed + COLUMNS - 1} in columns`);
  }
}

/* One image of each class, as notebook 03 kept them; epoch 0 is the untrained generator. */
function showEpoch() {
  const epoch = numberOf("epoch"), size = SIDE * SIDE;
  const text = epoch > 0 ? `epoch ${epoch}` : "untrained";
  document.querySelectorAll("#epochs canvas").forEach((canvas, label) => {
    const start = (epoch * classes.length + label) * size;
    show(epochImages.subarray(start, start + size), canvas);
  });
  describe("epochs", `One image of each class, ${text}`);
  showValue("epoch", text);
}

let animation = null;  // while it plays

function playOrPause() {
  if (animation === null) {
    if (numberOf("epoch") === Number(element("epoch").max)) element("epoch").value = -1;
    nextEpoch();
    animation = setInterval(nextEpoch, 1000 * SECONDS);
  } else {
    clearInterval(animation);
    animation = null;
  }
  element("play").textContent = animation === null ? "Play" : "Pause";
}

function nextEpoch() {
  element("epoch").value = numberOf("epoch") + 1;
  showEpoch();
  if (animation !== null && numberOf("epoch") === Number(element("epoch").max)) playOrPause();
}

/* Show a slider's value beside it, and give it to a screen reader. */
function showValue(id, text) {
  element(`${id}-value`).textContent = text;
  element(id).setAttribute("aria-valuetext", text);
}

/* Say it once the slider rests: a screen reader would read out every step. */
let pause;
function announce(id, text) {
  clearTimeout(pause);
  pause = setTimeout(() => { element(id).textContent = text; }, 300);  // milliseconds
}

let frame;

function update() {
  for (const id of ["blend", "walk"]) showValue(id, `${numberOf(id)}%`);
  showValue("seed", numberOf("seed"));
  showPair();
  cancelAnimationFrame(frame);  // of a slider that moves fast, the grids skip some values
  frame = requestAnimationFrame(showGrids);
}

for (const [id, label] of [["class", "Sneaker"], ["blend-with", "Ankle boot"]]) {
  classes.forEach((name, i) => element(id).add(new Option(name, i)));
  element(id).value = classes.indexOf(label);
}
for (const list of document.querySelectorAll(".class-names")) {
  list.innerHTML = classes.map((name) => `<span>${name}</span>`).join("");
}
element("epochs").innerHTML = classes.map((name) =>
  `<figure><canvas width="${SIDE}" height="${SIDE}"></canvas>` +
  `<figcaption>${name}</figcaption></figure>`).join("");
for (const id of ["class", "blend-with", "blend", "seed", "walk"]) {
  element(id).addEventListener("input", update);
}
element("epoch").addEventListener("input", showEpoch);
element("play").addEventListener("click", playOrPause);
update();
showEpoch();
