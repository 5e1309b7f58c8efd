/* The text of a pane: a span for each token, in blocks that the browser may skip while they are out of sight. */

import { make } from "./dom.js";
import { counted, shortened } from "./words.js";

const BLOCK_TOKENS = 192; // per block
const LARGEST_BLOCK = 1500; // a text without line breaks is broken here
const LETTER_WIDTH = 0.6; // of the monospaced letter, in em: to guess the height of what is not laid out

export class TextSheet {
  /**
   * @param {any} element where the tokens go
   * @param {any} bar a button that folds the reasoning, and says how much of it there is
   * @param {number} longestToken characters of a token that are shown
   */
  constructor(element, bar, longestToken) {
    this.element = element;
    this.bar = bar;
    this.longestToken = longestToken;
    bar.addEventListener("click", () => this.fold(!this.folded));
    this.clear();
  }

  clear() {
    this.review = null;
    this.spans = [];
    this.blocks = []; // [{ element, first, end, letters }]
    this.revealLater = null;
    this.element.replaceChildren();
    this.element.scrollTop = 0;
    this.fold(false);
  }

  /** Whether what stands here may stay where it is when a newer state of its review is shown. */
  continues(review) {
    return this.spans.every((_, i) => review.isReasoning(i) === this.review.isReasoning(i));
  }

  /** Show the answer alone, or the reasoning before it as well. */
  fold(folded) {
    this.folded = folded;
    this.element.toggleAttribute("data-folded", folded);
    this.bar.setAttribute("aria-expanded", String(!folded));
  }

  nameReasoning(review) {
    const [first, end] = review.reasoning;
    this.bar.hidden = first === end;
    this.bar.textContent = `Reasoning, ${counted(end - first, "token")}`;
    // What is being written stays open: nothing that has been painted moves.
    if (!this.spans.length) this.fold(first < end && end < review.count);
  }

  /** Append the tokens of a review that are not there yet. */
  extend(review) {
    this.nameReasoning(review);
    this.review = review;
    const fragment = document.createDocumentFragment();
    for (let i = this.spans.length; i < review.count; i++) {
      let block = this.blocks.at(-1);
      const size = block ? i - block.first : 0;
      // A block ends only where a line ends: breaking elsewhere would show.
      const thought = review.isReasoning(i);
      if (!block || block.thought !== thought || (size >= BLOCK_TOKENS && review.text[review.starts[i] - 1] === "\n") || size >= LARGEST_BLOCK) {
        block = { element: make("div", thought ? "block thought" : "block"), first: i, thought };
        block.element.role = "presentation";
        this.blocks.push(block);
        fragment.append(block.element);
      }
      // A word's leading space stays unpainted: at the end of a line it would be a sliver of colour. So does the
      // last line break: what follows the token would stand on the next line.
      const [, space, middle, end] = /^( (?=\S))?(.*?)(\n?)$/s.exec(review.token(i));
      const span = make("span", "", shortened(middle, this.longestToken));
      span.role = "option";
      span.index = i;
      this.spans.push(span);
      block.element.append(...[space, span, end].filter(Boolean));
    }
    this.element.append(fragment);
    this.guessHeights();
  }

  /** Tell the browser how tall the blocks that it has not laid out will be: the scroll bar stays true. */
  guessHeights() {
    const { fontSize, lineHeight, paddingLeft, paddingRight } = getComputedStyle(this.element);
    const room = this.element.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
    const letters = Math.max(10, Math.floor(room / (parseFloat(fontSize) * LETTER_WIDTH)));
    const ends = [...this.blocks.slice(1).map((block) => block.first), this.review.count];
    this.blocks.forEach((block, b) => {
      if (block.end === ends[b] && block.letters === letters) return;
      Object.assign(block, { end: ends[b], letters });
      const words = this.review.text.slice(this.review.starts[block.first], this.review.starts[block.end]);
      const lines = words.split("\n").reduce((sum, line) => sum + Math.ceil(line.length / letters), 0);
      block.element.style.containIntrinsicBlockSize = `auto ${Math.max(1, lines) * parseFloat(lineHeight)}px`;
    });
  }

  /** The text has another width, or one at last: it was on a hidden tab. */
  resized() {
    this.guessHeights();
    if (this.revealLater) this.reveal(this.revealLater.index, this.revealLater);
  }

  /** The tokens in sight, by block and then by proportion. */
  window() {
    const { scrollTop, clientHeight } = this.element;
    return { first: this.tokenAtHeight(scrollTop), last: this.tokenAtHeight(scrollTop + clientHeight) };
  }

  tokenAtHeight(y) {
    const block = this.blocks.findLast(({ element }) => element.offsetTop <= y) ?? this.blocks[0];
    if (!block) return 0;
    const share = (y - block.element.offsetTop) / Math.max(1, block.element.offsetHeight);
    const index = block.first + Math.min(1, Math.max(0, share)) * (block.end - block.first);
    return Math.min(this.review.count - 1, Math.floor(index));
  }

  /** Scroll the text, and only the text, until the token is in sight. */
  reveal(index, { centre = false } = {}) {
    if (!this.element.clientHeight) {
      this.revealLater = { index, centre }; // a hidden tab has no layout
      return;
    }
    this.revealLater = null;
    if (this.review.isReasoning(index)) this.fold(false);
    const settle = () => {
      const token = this.spans[index].getBoundingClientRect();
      const box = this.element.getBoundingClientRect();
      const above = token.top - box.top - 24;
      const below = token.bottom - box.bottom + 24;
      const far = above < -box.height || below > box.height;
      if (centre || far) this.element.scrollTop += (token.top + token.bottom - box.top - box.bottom) / 2;
      else if (above < 0) this.element.scrollTop += above;
      else if (below > 0) this.element.scrollTop += below;
    };
    settle();
    requestAnimationFrame(() => this.spans[index] && settle()); // heights of unseen blocks were guesses
  }

  /** The token nearest above or below: lines exist only in the layout. */
  lineNeighbour(index, direction) {
    const middle = ({ left, right }) => (left + right) / 2;
    const box = (i) => this.spans[i].getClientRects()[0] ?? this.spans[i].getBoundingClientRect();
    const here = box(index);
    let best = index;
    let line = null;
    for (let i = index + direction; i >= 0 && i < this.spans.length; i += direction) {
      const there = box(i);
      if (!there.height) continue; // folded
      if (Math.abs(there.top - here.top) < here.height / 2) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) >= here.height / 2) break;
      const distance = (other) => Math.abs(middle(other) - middle(here));
      if (best === index || distance(there) < distance(box(best))) best = i;
    }
    return best;
  }
}
