/*
 * Everything that decides a token's classes, packed into one number: only where it changes is the page touched. Its
 * lowest bits are the verdict, then come the step of the ramp and which ramp it is.
 */

import { RAMPS } from "./colour.js";
import { FLAG_VERDICT } from "./data.js";

const LEVEL_SHIFT = 3;
const RAMP_SHIFT = 6;
export const FORK = 1 << 8;
export const SIGN = 1 << 9;
export const SPECIAL = 1 << 10;
export const BEFORE = 1 << 11;
export const HIT = 1 << 12;
export const CURSOR = 1 << 13;
export const BLANK = 1 << 14;
export const UNGRADED = 1 << 15;
/** @type {[number, string][]} */
const NAMES = [
  [FORK, "fork"],
  [SPECIAL, "special"],
  [BEFORE, "before"],
  [HIT, "hit"],
  [CURSOR, "cursor"],
  [BLANK, "blank"],
  [UNGRADED, "ungraded"],
];

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
    for (const [bit, name] of NAMES) if (code & bit) names.push(name);
    knownClassNames.set(code, names.join(" "));
  }
  return knownClassNames.get(code);
}
