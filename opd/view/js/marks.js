/*
 * Everything that decides a token's classes, packed into one number: only where it changes is the page touched. Its
 * lowest bits are the verdict, then come the step of the ramp and which ramp it is.
 */

import { RAMPS } from "./colour.js";
import { FLAG_VERDICT } from "./data.js";

const LEVEL_SHIFT = 4;
const RAMP_SHIFT = 7;
const FLAGS = ["fork", "sign", "special", "before", "hit", "cursor", "blank", "ungraded"];

/** The bit of each flag by its name, which is its class too; only "sign" has none. */
export const BIT = Object.fromEntries(FLAGS.map((name, i) => [name, 1 << (9 + i)]));

/** The code of a verdict, and of a level of a ramp; 0 is no colour. */
export const codeOf = (verdict, level, ramp) =>
  verdict | (level << LEVEL_SHIFT) | (level ? RAMPS.indexOf(ramp) << RAMP_SHIFT : 0);

export const verdictOf = (code) => code & FLAG_VERDICT;

const knownClassNames = new Map();

/** The classes that a code stands for. */
export function classNames(code, verdictNames) {
  if (!knownClassNames.has(code)) {
    const names = ["token", `is-${verdictNames[verdictOf(code)]}`];
    const level = (code >> LEVEL_SHIFT) & 7;
    if (level) names.push("heat", `${RAMPS[(code >> RAMP_SHIFT) & 3]}-${level}`);
    names.push(...FLAGS.filter((name) => code & BIT[name] && name !== "sign"));
    knownClassNames.set(code, names.join(" "));
  }
  return knownClassNames.get(code);
}
