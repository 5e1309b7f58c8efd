/* Numbers and tokens as words. */

export const RARE = 0.001; // smaller shares are not worth their digits

const ENDINGS = /** @type {[RegExp, string][]} */ ([[/y$/, "ies"], [/ch$/, "ches"], [/$/, "s"]]);

export const number = (value, digits = 2) => value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
export const signed = (value) => number(value).replace(/^(?=\d)/, "+");
export const plural = (count, noun) => (count === 1 ? noun : noun.replace(...ENDINGS.find(([end]) => end.test(noun))));
export const counted = (count, noun) => `${count.toLocaleString("en")} ${plural(count, noun)}`;

/** A share as a percentage; it says 0 or 100 only where it is that. */
export function percent(share) {
  if (share > 0 && share < RARE) return "<0.1\u00a0%";
  if (share < 1 && share > 1 - RARE) return ">99.9\u00a0%";
  const close = (share > 0 && share < 0.1) || (share > 0.99 && share < 1);
  return `${(100 * share).toFixed(close ? 1 : 0)}\u00a0%`;
}

/** A number, or a share, that may be missing. */
export const figure = (value, digits = 2) => (Number.isFinite(value) ? number(value, digits) : "–");
export const shareWords = (value) => (Number.isFinite(value) ? percent(value) : "–");

/** A moment (seconds since 1970) as the reader's clock says it. */
export const moment = (seconds) => new Date(1000 * seconds).toLocaleString([], { dateStyle: "short", timeStyle: "short" });

/** A token as a label on one line: spaces as dots, no line break, its beginning if it is long. */
export function label(token, longest = 60) {
  return shortened(token.replaceAll("\n", "").replaceAll(" ", "·") || "∅", longest);
}

/** A label as it is spoken. */
export const spoken = (text) => text.replaceAll("·", " ").trim();

/** A text of at most this length, and a sign that it goes on; never half a surrogate pair. */
export function shortened(text, length) {
  if (text.length <= length) return text;
  return `${text.slice(0, length).replace(/[\ud800-\udbff]$/, "")}…`;
}
