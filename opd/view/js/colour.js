/* Colours, and canvases to put them on. */

const RAMPS = ["dislike", "like", "open"];

/** The step of the ramp that a magnitude falls on; 0 is no colour. NaN, not known yet, has none. */
function heatLevel(value, steps) {
  const magnitude = Math.abs(value);
  let level = 0;
  while (level < steps.length && magnitude >= steps[level]) level += 1;
  return level;
}

/** Resolve the CSS colours for the canvases. A custom property alone would come back as unresolved text. */
function readPalette(root) {
  const probe = make("span");
  probe.hidden = true;
  root.append(probe);
  const resolve = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = ["line", "muted", "ink", "paper", "fork", "cursor", "window", "teacher", "shade"];
  const palette = Object.fromEntries(names.map((name) => [name, resolve(name)]));
  for (const ramp of RAMPS) palette[ramp] = [1, 2, 3, 4, 5, 6].map((step) => resolve(`${ramp}-${step}`));
  palette.font = getComputedStyle(root).fontFamily;
  probe.remove();
  return palette;
}

/** Size a canvas to its box in device pixels and return a context in CSS pixels, or null while hidden. */
function prepareCanvas(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return null;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

/** How large a value is; one that is not known counts as none. */
const sizeOf = (value) => Math.abs(value) || 0;

/** For every pixel column the place of the largest magnitude: peaks survive when values are many. */
function peaks(values, columns) {
  const winners = new Int32Array(columns);
  for (let x = 0; x < columns; x++) {
    const first = Math.floor((x * values.length) / columns);
    const last = Math.max(first + 1, Math.floor(((x + 1) * values.length) / columns));
    winners[x] = first;
    for (let i = first + 1; i < last; i++) if (sizeOf(values[i]) > sizeOf(values[winners[x]])) winners[x] = i;
  }
  return winners;
}

function diamond(context, x, y, radius) {
  context.beginPath();
  context.moveTo(x, y - radius);
  context.lineTo(x + radius, y);
  context.lineTo(x, y + radius);
  context.lineTo(x - radius, y);
  context.fill();
}
