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
    Object.assign(this, { classes, latentDim, latentScale, parameters: {} });
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
    let h = concatenate(z, embedded);
    h = relu(this.linear("layers.0", h));
    h = relu(this.linear("layers.2", h));
    return tanh(this.linear("layers.4", h));
  }

  /* y = x W + b. The weight has one row per input, so that an input of 0, as ReLU makes half of
   * them, costs nothing. Four rows at a time are faster than one.
   */
  linear(name, x) {
    const weight = this.parameters[`${name}.weight`];
    const bias = this.parameters[`${name}.bias`];
    const size = weight.shape[1];
    const y = bias ? bias.slice() : new Float32Array(size);
    const inputs = [], rows = [];
    for (let i = 0; i < x.length; i++) {
      if (x[i] !== 0) inputs.push(x[i]), rows.push(i * size);
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
}

/* The tuned recipe: conditional batch norm after each layer, and a patch decoder at the end. */
class TunedGenerator extends Generator {
  decode(z, embedded) {
    const inputs = concatenate(z, embedded);
    let h = inputs;
    for (const i of [0, 1, 2]) {
      const norm = this.conditionalBatchNorm(`norms.${i}`, inputs);
      h = relu(norm(this.linear(`hidden.${i}`, h)));
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
    const scaleAndShift = this.linear(`${name}.scale_and_shift`, inputs);
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

function concatenate(first, second) {
  return Float32Array.of(...first, ...second);
}

function relu(h) {
  for (let i = 0; i < h.length; i++) h[i] = Math.max(h[i], 0);
  return h;
}

function tanh(h) {
  for (let i = 0; i < h.length; i++) h[i] = Math.tanh(h[i]);
  return h;
}

/* The values of half-precision floats, which come in base64: 1 sign, 5 exponent, 10 fraction bits. */
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
