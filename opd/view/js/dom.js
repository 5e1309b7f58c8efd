/* Elements of the page. A text only ever becomes a text node. */

/**
 * Make an element; strings become text nodes.
 * @returns {any}
 */
export function make(tag, className = "", ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Make a button that says what it does. */
export function makeButton(className, text, act) {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

/** Make a labelled radio button or check box. */
export function makeChoice(type, name, text, act) {
  const input = make("input");
  Object.assign(input, { type, name });
  input.addEventListener("change", () => act(input.checked));
  return { input, label: make("label", "", input, make("span", "", text)) };
}

/** Make a mark of a curve's colour, a CSS variable, with the curve's name. */
export function makeKey(colour, text) {
  const key = make("span", "key", text);
  key.style.setProperty("--key", `var(--${colour})`);
  return key;
}

export function replaceTerms(list, entries) {
  list.replaceChildren(
    ...entries.map(([term, value, className = ""]) =>
      make("div", className, make("dt", "", term), make("dd", "", value)),
    ),
  );
}

/**
 * A function that finds parts of an element by a selector.
 * @returns {(selector: string) => any}
 */
export const partsOf = (root) => (selector) => root.querySelector(selector);

/** Call `act` a moment after the last time that it was asked for. */
export function delayed(act, milliseconds) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds, ...values);
  };
}

/** Call `act` when the colours of the page change: Gradio has a class for the night, a page of its own the system's. */
export function onRecolour(act) {
  new MutationObserver(act).observe(document.body, { attributes: true, attributeFilter: ["class"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", act);
}

/** Set a value of the page's query, or take it away; the rest of the address and the history stay as they are. */
export function setQuery(name, value) {
  const query = new URLSearchParams(location.search);
  if (value) query.set(name, value);
  else query.delete(name);
  history.replaceState(history.state, "", location.pathname + (query.size ? `?${query}` : "") + location.hash);
}

/** Copy a text; whether that worked: without https there is no clipboard. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}
