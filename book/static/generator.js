/* The shipped generators in plain JavaScript: a latent and a label in, an image out.
 *
 * They compute what `Generator` (cgan_utils/models.py) and `TunedGenerator` (cgan_utils/tuned.py)
 * compute in eval mode, one image at a time. A vector is a Float32Array, and the parameters keep
 * their names. `make book` writes a file with the parameters of each generator; it calls
 * `addGenerator`.
 */
"use strict";

const SIDE = 28;  // pixels of an image
const generators = {};  // by recipe: original, tuned

/* Generate one image for each label: a list of Float32Array(784), from -1 to 1, row by row.
 *
 * The counterpart of `cg.sample(generator, labels, latent=latent)`: recipe is "original" or
 * "tuned", labels are class numbers, and latent has one z for each, which is used unchanged.
 */
function sample(recipe, labels, latent) {
  const generator = generators[recipe];
  return labels.map((label, i) => generator.decode(latent[i], generator.embedding(label)));
}

/* The original recipe: linear layers, ReLU between them, and Tanh at the end. */
class Generator {
  /* parameters: {name: {shape, halves}}, with the half-precision elements in base64. */
  constructor({ classes, latentDim, latentScale, parameters }) {
    Object.assign(this, { classes, latentDim, latentScale, parameters: {}, kept: {} });
    for (const [name, { shape, halves }] of Object.entries(parameters)) {
      this.parameters[name] = Object.assign(fromHalves(halves), { shape });
    }
  }

  /* The label's row of the embedding table. */
  embedding(label) {
    const table = this.parameters["embedding.weight"];
    const width = table.shape[1];
    return table.subarray(label * width, (label + 1) * width);
  }

  /* Generate from any embedding: a label's, or a blend of two. */
  decode(z, embedded) {
    let h = relu(this.linearOfBoth("layers.0", [z, embedded]));
    h = relu(this.linear("layers.2", h));
    return tanh(this.linear("layers.4", h));
  }

  /* x W + b. */
  linear(name, x) {
    const weight = this.parameters[`${name}.weight`];
    const bias = this.parameters[`${name}.bias`];
    return addRows(bias ? bias.slice() : new Float32Array(weight.shape[1]), weight, x, 0);
  }

  /* The same for z and a label's embedding in a row. What z adds to the sum is kept: a class grid
   * needs it ten times.
   */
  linearOfBoth(name, [z, embedded]) {
    if (this.kept[name]?.z !== z) this.kept[name] = { z, y: this.linear(name, z) };
    const weight = this.parameters[`${name}.weight`];
    return addRows(this.kept[name].y.slice(), weight, embedded, z.length);
  }
}

/* y += x W, with the rows of W from `first` on. An input of 0, as ReLU makes half of them, costs
 * nothing, as W has one row per input. Four rows at a time are faster than one.
 */
function addRows(y, weight, x, first) {
  const size = y.length, inputs = [], rows = [];
  for (let i = 0; i < x.length; i++) {
    if (x[i] !== 0) inputs.push(x[i]), rows.push((first + i) * size);
  }
  while (inputs.length % 4) inputs.push(0), rows.push(0);
  for (let i = 0; i < inputs.length; i += 4) {
    const a = inputs[i], b = inputs[i + 1], c = inputs[i + 2], d = inputs[i + 3];
    const p = rows[i], q = rows[i + 1], r = rows[i + 2], s = rows[i + 3];
    for (let j = 0; j < size; j++) {
      y[j] += a * weight[p + j] + b * weight[q + j] + c * weight[r + j] + d * weight[s + j];
    }
  }
  return y;
}

/* The tuned recipe: conditional batch norm after each layer, and a patch decoder at the end. */
class TunedGenerator extends Generator {
  decode(z, embedded) {
    const inputs = [z, embedded];
    let h = this.linearOfBoth("hidden.0", inputs);
    h = relu(this.conditionalBatchNorm("norms.0", inputs)(h));
    for (const i of [1, 2]) {
      h = this.linear(`hidden.${i}`, h);
      h = relu(this.conditionalBatchNorm(`norms.${i}`, inputs)(h));
    }
    return tanh(this.patchDecoder(h, inputs));
  }

  /* Return the norm for these inputs: a function of h. The mean and the variance of each unit come
   * from training; its scale and its shift depend on z and the label.
   */
  conditionalBatchNorm(name, inputs) {
    const mean = this.parameters[`${name}.normalize.running_mean`];
    const variance = this.parameters[`${name}.normalize.running_var`];
    const units = mean.length;
    const scaleAndShift = this.linearOfBoth(`${name}.scale_and_shift`, inputs);
    const factor = new Float32Array(units), offset = new Float32Array(units);
    for (let i = 0; i < units; i++) {  // of (1 + scale) * (h - mean) / deviation + shift
      factor[i] = (1 + scaleAndShift[i]) / Math.sqrt(variance[i] + 1e-5);
      offset[i] = scaleAndShift[units + i] - mean[i] * factor[i];
    }
    return (h) => {
      for (let i = 0; i < units; i++) h[i] = factor[i] * h[i] + offset[i];
      return h;
    };
  }

  /* One small network generates a patch of 8 x 8 pixels at each of 7 x 7 places, which lie 4 pixels
   * apart. Where patches overlap, they are added.
   */
  patchDecoder(h, inputs) {
    const FEATURES = 24, PATCH = 8, STRIDE = 4, MARGIN = 2, ACROSS = 7, PLACES = 49;
    const featureNorm = this.conditionalBatchNorm("output.norms.0", inputs);
    const hiddenNorm = this.conditionalBatchNorm("output.norms.1", inputs);
    const features = this.linear("output.features", h);  // the first one of all places, ...
    const image = new Float32Array(SIDE * SIDE);
    for (let place = 0; place < PLACES; place++) {
      const own = new Float32Array(FEATURES);
      for (let i = 0; i < FEATURES; i++) own[i] = features[i * PLACES + place];
      const hidden = this.linear("output.hidden", relu(featureNorm(own)));
      const patch = this.linear("output.output", relu(hiddenNorm(hidden)));
      const top = STRIDE * Math.floor(place / ACROSS) - MARGIN;
      const left = STRIDE * (place % ACROSS) - MARGIN;
      for (let i = 0; i < PATCH * PATCH; i++) {
        const y = top + Math.floor(i / PATCH), x = left + i % PATCH;
        if (y >= 0 && y < SIDE && x >= 0 && x < SIDE) image[y * SIDE + x] += patch[i];
      }
    }
    return image;
  }
}

function addGenerator(recipe, description) {
  const kind = { original: Generator, tuned: TunedGenerator }[recipe];
  generators[recipe] = new kind(description);
}

function relu(h) {
  for (let i = 0; i < h.length; i++) h[i] = Math.max(h[i], 0);
  return h;
}

function tanh(h) {
  for (let i = 0; i < h.length; i++) h[i] = Math.tanh(h[i]);
  return h;
}

/* Half-precision floats in base64 as a Float32Array: 1 sign, 5 exponent, 10 fraction bits each. */
function fromHalves(base64) {
  const bytes = atob(base64), values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) {
    const low = bytes.charCodeAt(2 * i), high = bytes.charCodeAt(2 * i + 1);
    const exponent = (high >> 2) & 31, fraction = ((high & 3) << 8) | low;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25);
    values[i] = high & 128 ? -size : size;
  }
  return values;
}
