/* Colours, and canvases to put them on. */

import { make } from "./dom.js";

export const RAMPS = ["dislike", "like", "open"];

/** The step of the ramp that a magnitude falls on; 0 is no colour. NaN, not known yet, has none. */
export function heatLevel(value, steps) {
  const magnitude = Math.abs(value);
  let level = 0;
  while (level < steps.length && magnitude >= steps[level]) level += 1;
  return level;
}

/** Resolve colours of the style sheet, which differ by day and by night, for what CSS does not paint. */
export function readColours(root, names) {
  // A custom property alone would come back as unresolved text.
  const probe = make("span");
  probe.hidden = true;
  root.append(probe);
  const colours = names.map((name) => {
    probe.style.color = `var(--${name})`;
    return [name, getComputedStyle(probe).color];
  });
  probe.remove();
  return Object.fromEntries(colours);
}

/** Size a canvas to its box in device pixels and return a context in CSS pixels, or null while hidden. */
export function prepareCanvas(canvas) {
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
export function peaks(values, columns) {
  const winners = new Int32Array(columns);
  for (let x = 0; x < columns; x++) {
    const first = Math.floor((x * values.length) / columns);
    const last = Math.max(first + 1, Math.floor(((x + 1) * values.length) / columns));
    winners[x] = first;
    for (let i = first + 1; i < last; i++) if (sizeOf(values[i]) > sizeOf(values[winners[x]])) winners[x] = i;
  }
  return winners;
}
