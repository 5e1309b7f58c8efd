/*
 * The token review component: graded trajectories, painted and made explorable. These scripts are joined in
 * the order of opd.view.SCRIPTS and share one scope; view.js has the entry and says how to use it.
 *
 * A model's text only ever becomes a text node, and arrives with its invisible characters made visible.
 *
 * Here: numbers and tokens as words, words as elements.
 */

const RARE = 0.001; // smaller shares are not worth their digits

const number = (value, digits = 2) => value.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
const signed = (value) => number(value).replace(/^(?=\d)/, "+");
const ENDINGS = [[/y$/, "ies"], [/ch$/, "ches"], [/$/, "s"]];
const plural = (count, noun) => (count === 1 ? noun : noun.replace(...ENDINGS.find(([end]) => end.test(noun))));
const counted = (count, noun) => `${count.toLocaleString("en")} ${plural(count, noun)}`;

/** A share as a percentage; it says 0 or 100 only where it is that. */
function percent(share) {
  if (share > 0 && share < RARE) return "<0.1\u00a0%";
  if (share < 1 && share > 1 - RARE) return ">99.9\u00a0%";
  const close = (share > 0 && share < 0.1) || (share > 0.99 && share < 1);
  return `${(100 * share).toFixed(close ? 1 : 0)}\u00a0%`;
}

/** A token as a label on one line: spaces as dots, no line break, its beginning if it is long. */
function label(token, longest = 60) {
  const text = token.replaceAll("\n", "").replaceAll(" ", "·") || "∅";
  return text.length > longest ? `${clipped(text, longest)}…` : text;
}

/** A label as it is spoken. */
const spoken = (text) => text.replaceAll("·", " ").trim();

/** The beginning of a text, never half a surrogate pair. */
function clipped(text, length) {
  const cut = text.slice(0, length);
  return /[\ud800-\udbff]$/.test(cut) ? cut.slice(0, -1) : cut;
}

/** Make an element; strings become text nodes. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Make a button that says what it does. */
function makeButton(className, text, act) {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

/** Make a labelled radio button or check box. */
function makeChoice(type, name, text, act) {
  const input = make("input");
  Object.assign(input, { type, name });
  input.addEventListener("change", () => act(input.checked));
  return { input, label: make("label", "", input, make("span", "", text)) };
}

function replaceTerms(list, entries) {
  list.replaceChildren(
    ...entries.map(([term, value, className = ""]) =>
      make("div", className, make("dt", "", term), make("dd", "", value)),
    ),
  );
}
