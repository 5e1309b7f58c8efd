/* Search in the shown texts. */

/** Where a text occurs, upper or lower case alike: [{ first, last }] of tokens. */
export function occurrences(review, wanted) {
  // Not all letters keep their length in lower case; where one does not, places would shift.
  const lower = review.text.toLowerCase();
  const [text, word] = lower.length === review.text.length ? [lower, wanted.toLowerCase()] : [review.text, wanted];
  const hits = [];
  let token = 0;
  for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
    while (review.starts[token + 1] <= at) token += 1;
    let last = token;
    while (review.starts[last + 1] < at + word.length) last += 1;
    hits.push({ first: token, last });
  }
  return hits;
}

export class Finder {
  constructor(view, element) {
    this.view = view;
    this.input = element.querySelector("input");
    this.count = element.querySelector("output");
    this.buttons = [...element.querySelectorAll("button")];
    this.at = -1;
    this.input.addEventListener("input", () => this.search());
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") this.step(event.shiftKey ? -1 : 1);
      else if (event.key === "Escape") this.close();
      else return;
      event.preventDefault();
    });
    this.buttons.forEach((button, i) => button.addEventListener("click", () => this.step(i ? 1 : -1)));
    this.say();
  }

  open() {
    this.input.focus();
    this.input.select();
  }

  close() {
    this.input.value = "";
    this.search();
    this.view.panes[0]?.text.focus();
  }

  /** Search anew: the word or the text has changed. */
  search() {
    this.at = -1;
    this.mark();
    for (const pane of this.view.panes) pane.paint();
  }

  /** Set every pane's hits. */
  mark() {
    const wanted = this.input.value;
    for (const pane of this.view.panes) pane.hits = wanted ? occurrences(pane.review, wanted) : [];
    this.hits = this.view.panes.flatMap((pane) => pane.hits.map((hit) => ({ pane, ...hit })));
    this.say();
  }

  step(direction) {
    if (!this.hits.length) return;
    if (this.at < 0 && direction < 0) this.at = 0;
    this.at = (this.at + direction + this.hits.length) % this.hits.length;
    const { pane, first } = this.hits[this.at];
    this.view.pin(pane, first);
    this.say();
  }

  say() {
    const found = this.hits?.length ?? 0;
    const words = this.at < 0 ? `${found} found` : `${this.at + 1} of ${found}`;
    this.count.textContent = this.input.value ? words : "";
    for (const button of this.buttons) button.hidden = !found;
  }
}
