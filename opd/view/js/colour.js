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

/** A canvas sized to its box, to be painted on in CSS pixels; hidden, it has no width or no height. */
export class Picture {
  constructor(canvas) {
    this.width = canvas.clientWidth;
    this.height = canvas.clientHeight;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(this.width * ratio);
    canvas.height = Math.round(this.height * ratio);
    this.context = canvas.getContext("2d");
    this.context.scale(ratio, ratio);
  }

  get isHidden() {
    return !this.width || !this.height;
  }

  area(colour, left, top, width, height) {
    this.context.fillStyle = colour;
    this.context.fillRect(left, top, width, height);
  }

  /** A line through some points, [left, top] each. */
  line(colour, thickness, points, dashes = []) {
    const { context } = this;
    Object.assign(context, { strokeStyle: colour, lineWidth: thickness });
    context.setLineDash(dashes);
    context.beginPath();
    for (const [left, top] of points) context.lineTo(left, top);
    context.stroke();
  }

  diamond(colour, x, y, radius) {
    const { context } = this;
    context.fillStyle = colour;
    context.beginPath();
    for (const [right, down] of [[0, -1], [1, 0], [0, 1], [-1, 0]]) context.lineTo(x + radius * right, y + radius * down);
    context.fill();
  }

  text(colour, words, left, bottom) {
    this.context.fillStyle = colour;
    this.context.fillText(words, left, bottom);
  }
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
