/* One trajectory: its report, its text, its minimap and its graph. */

import { heatLevel } from "./colour.js";
import { makeButton, partsOf, replaceTerms } from "./dom.js";
import { pressKey } from "./keys.js";
import { BIT, classNames, codeOf, verdictOf } from "./marks.js";
import { ReadPrompt } from "./read.js";
import { captionOf, figuresOf, noteOf } from "./report.js";
import { SIGNALS } from "./signals.js";
import { GRAPH_SLOT, POINTER_REACH, drawGraph, drawMinimap } from "./strips.js";
import { TextSheet } from "./text.js";
import { TokenTable } from "./token_table.js";
import { combine, unitsOf } from "./units.js";
import { DISAGREEMENTS } from "./verdicts.js";

export class Pane {
  constructor(view, group, fragment) {
    this.view = view;
    this.group = group;
    this.element = fragment.firstElementChild;
    this.part = partsOf(this.element);
    this.text = this.part(".text");
    this.sheet = new TextSheet(this.text, this.part(".thoughts"), view.legend.longestToken);
    this.read = new ReadPrompt(this, this.part(".read"));
    this.minimap = this.part(".minimap");
    this.canvas = this.part(".graph canvas");
    this.table = new TokenTable(this, this.part(".table"));
    this.review = null;
    this.lit = null;
    this.clear();
    this.listen();
  }

  /** Show a review; true if it continues the one that is shown, whose painted text then stays in place. */
  show(review, title) {
    const grown = this.review !== null && review.continues(this.review) === this.review.count && this.sheet.continues(review);
    if (!grown) this.clear();
    this.review = review;
    this.part(".pane-title").textContent = title;
    this.element.dataset.ended = review.finish_reason ?? "";
    this.read.show(review);
    this.sheet.extend(review);
    while (this.codes.length < review.count) this.codes.push(-1);
    const note = this.part(".note");
    note.textContent = noteOf(review);
    note.hidden = !note.textContent;
    return grown;
  }

  clear() {
    this.sheet.clear();
    this.codes = []; // of the tokens as they are painted (marks.js), -1 before that
    this.hits = [];
    this.values = new Float32Array();
    this.signal = null; // that the values are of
  }

  /** Get the values of the chosen signal: null if `values` holds them at once, else a promise. */
  load() {
    if (this.view.signal !== "penalty") return this.fetchValues();
    this.values = this.review.penalty;
    this.signal = "penalty";
    return null;
  }

  async fetchValues() {
    const { signal, sample, fetched } = this.view;
    const { review } = this;
    const column = await fetched.column(this.group, sample, signal, review);
    if (this.view.signal !== signal || this.review !== review) return;
    this.values = column ?? new Float32Array(review.count).fill(NaN);
    this.signal = signal;
  }

  /** Bring values, units and forks up to the text and the choices; what is not there yet has no colour. */
  prepare() {
    const { review, view } = this;
    if (this.signal !== view.signal || this.values.length !== review.count) {
      const kept = this.signal === view.signal ? this.values : [];
      this.values = new Float32Array(review.count).fill(NaN);
      this.values.set(kept.slice(0, review.count));
      this.signal = view.signal;
    }
    this.units = unitsOf(review, view.granularity);
    this.unitValues = combine(this.values, this.units, SIGNALS[view.signal].combine);
    this.shown = Float32Array.from(this.units.of, (unit) => this.unitValues[unit]);
    // What the student did not choose here has no sign. VERDICTS stand from best to worst, so that the worst of a
    // unit is its largest.
    const signless = view.verdictNames.indexOf("good");
    this.signs = review.verdicts.map((verdict, index) => (review.isOwn(index) ? verdict : signless));
    this.worst = combine(this.signs, this.units, "max");
    this.forks = review.forks(view.forkDefinition);
  }

  /** Colour the text by the signal; only classes change, and only of tokens that look different. */
  paint() {
    const { review, view, units } = this;
    const { legend, steps } = view;
    const ramp = SIGNALS[view.signal].ramp;
    const unitCodes = Uint32Array.from(this.unitValues, (value, unit) => {
      const level = heatLevel(value, steps);
      return codeOf(this.worst[unit], level, ramp(value));
    });
    const codes = Uint32Array.from(units.of, (unit) => unitCodes[unit]);
    for (let unit = 0; unit < units.count; unit++) {
      if (legend.verdicts[this.worst[unit]].glyph) codes[units.first[unit + 1] - 1] |= BIT.sign;
    }
    for (const index of this.forks) codes[index] |= BIT.fork;
    for (const { first, last } of this.hits) for (let i = first; i <= last; i++) codes[i] |= BIT.hit;
    const pinned = view.pinnedIndex(this);
    if (pinned !== null) codes[pinned] |= BIT.cursor;
    const before = review.branch?.at ?? 0;
    for (let i = 0; i < codes.length; i++) {
      let code = codes[i];
      if (review.isSpecial(i)) code |= BIT.special;
      if (i < before) code |= BIT.before;
      if (review.isUngraded(i)) code |= BIT.ungraded;
      if (code === (this.codes[i] & ~BIT.blank)) continue;
      if (/^[\s↵⇥]*$/.test(review.token(i))) code |= BIT.blank;
      if (code === this.codes[i]) continue;
      this.codes[i] = code;
      const span = this.sheet.spans[i];
      span.className = classNames(code, view.verdictNames);
      const glyph = code & BIT.sign ? legend.verdicts[verdictOf(code)].glyph : "";
      if (glyph) span.dataset.glyph = `\u2060${glyph}`; // the word joiner keeps it on the token's line
      else if (span.dataset.glyph) delete span.dataset.glyph;
    }
    this.element.dataset.signal = this.signal; // what the colours mean by now
    if (this.lit) this.light(null); // the button that lit it goes
    replaceTerms(this.part(".report"), figuresOf(this));
    this.part(".caption").textContent = captionOf(this);
    this.table.update();
    this.draw();
  }

  /** Give the cursor to a token or take it away. */
  mark(index, on) {
    const span = this.sheet.spans[index];
    if (!span) return;
    this.codes[index] = on ? this.codes[index] | BIT.cursor : this.codes[index] & ~BIT.cursor;
    span.className = classNames(this.codes[index], this.view.verdictNames);
    if (on) {
      span.ariaSelected = "true";
      span.id = `${this.view.name}-cursor`;
      this.text.setAttribute("aria-activedescendant", span.id);
    } else {
      span.removeAttribute("aria-selected");
      span.removeAttribute("id");
      this.text.removeAttribute("aria-activedescendant");
    }
    this.part(".caption").textContent = captionOf(this);
    this.table.markPinned();
    this.draw();
  }

  /** Redraw graph and minimap with the next frame. */
  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = null;
      if (!this.review || !this.units) return;
      drawGraph(this);
      drawMinimap(this);
    });
  }

  /** A count: pointing at it lights its tokens, pressing it walks through them. */
  countButton(name, text) {
    const button = makeButton("count", text, () => this.walk(name));
    const light = (lit) => () => this.light(lit ? name : null);
    button.addEventListener("pointerenter", light(true));
    button.addEventListener("pointerleave", light(false));
    button.addEventListener("focus", light(true));
    button.addEventListener("blur", light(false));
    const next = name === "fork" ? "to the worst one and on to the next worst" : "from one to the next";
    button.title = `Point to light every ${name}, press to walk ${next}`;
    return button;
  }

  /** The fork that decides what the graph shades: the last one up to the pinned token, or the first one. */
  downstream() {
    const pinned = this.view.pinnedIndex(this);
    const { correct } = this.review;
    if (correct === true || !this.forks.length || (correct === null && pinned === null)) return null;
    const passed = this.forks.filter((fork) => pinned !== null && fork <= pinned).length;
    if (!passed && correct === null) return null;
    const fork = Math.max(1, passed);
    return { fork, at: this.forks[fork - 1] };
  }

  // -- lighting, filters, walking

  /** Whether a token is one of those called `what`: a verdict, "fork" or "disagreement". */
  matches(index, what) {
    if (what === "fork") return (this.codes[index] & BIT.fork) !== 0;
    const name = this.view.verdictNames[this.signs[index]];
    return what === "disagreement" ? DISAGREEMENTS.includes(name) : name === what;
  }

  light(what) {
    this.lit = what;
    if (what) this.text.dataset.lit = what;
    else delete this.text.dataset.lit;
    this.draw();
  }

  /** To the next token called `what`; of forks, which are few, to the next worst one, the worst first. */
  walk(what) {
    const pinned = this.view.pinnedIndex(this);
    if (what === "fork") {
      const worst = this.forks.toSorted((a, b) => this.review.penalty[b] - this.review.penalty[a]);
      return worst.length ? this.view.pin(this, worst[(worst.indexOf(pinned) + 1) % worst.length]) : null;
    }
    const from = pinned ?? -1;
    for (let away = 1; away <= this.review.count; away++) {
      const index = (from + away) % this.review.count;
      if (this.matches(index, what)) return this.view.pin(this, index);
    }
    return null;
  }

  // -- places

  /** Width of one token in the graph. */
  slotWidth(width = this.canvas.clientWidth) {
    return Math.min(width / this.review.count, GRAPH_SLOT);
  }

  /** Height of one token in the minimap. */
  minimapRow(height = this.minimap.clientHeight) {
    return height / this.review.count;
  }

  /** The token at a place of the graph; where bars are thin, the tallest within reach of the pointer. */
  indexAt(x) {
    const slot = this.slotWidth();
    const reach = Math.floor(POINTER_REACH / slot);
    const under = Math.floor(x / slot);
    if (under >= this.review.count) return null;
    let best = Math.max(under, 0);
    for (let i = Math.max(under - reach, 0); i <= Math.min(under + reach, this.review.count - 1); i++) {
      if (Math.abs(this.shown[i]) > Math.abs(this.shown[best])) best = i;
    }
    return best;
  }

  forkNeighbour(index, direction) {
    const { forks } = this;
    if (!forks.length) return Math.max(0, Math.min(index, this.review.count - 1));
    if (direction > 0) return forks.find((fork) => fork > index) ?? forks[0];
    return forks.findLast((fork) => fork < index) ?? forks.at(-1);
  }

  // -- pointer and keys

  listen() {
    const { text, canvas, minimap, view } = this;
    const indexOf = (event) => event.target.index ?? null;
    text.addEventListener("pointerover", (event) => {
      if (event.pointerType !== "touch") view.preview.hover(this, indexOf(event));
    });
    text.addEventListener("pointerleave", () => view.preview.hover(this, null));
    text.addEventListener("click", (event) => {
      if (indexOf(event) !== null) view.pin(this, indexOf(event));
    });
    text.addEventListener("scroll", () => this.draw(), { passive: true });
    text.addEventListener("keydown", (event) => pressKey(view, this, event));

    canvas.addEventListener("pointermove", (event) => view.preview.hover(this, this.indexAt(event.offsetX), event));
    canvas.addEventListener("pointerleave", () => view.preview.hover(this, null));
    canvas.addEventListener("click", (event) => {
      const index = this.indexAt(event.offsetX);
      if (index !== null) view.pin(this, index);
    });

    const mapped = (event) => {
      const index = Math.floor(event.offsetY / this.minimapRow());
      return Math.max(0, Math.min(this.review.count - 1, index));
    };
    minimap.addEventListener("pointerdown", (event) => {
      minimap.setPointerCapture(event.pointerId);
      this.sheet.reveal(mapped(event), { centre: true });
    });
    minimap.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) this.sheet.reveal(mapped(event), { centre: true });
      else view.preview.hover(this, mapped(event), event);
    });
    minimap.addEventListener("pointerleave", () => view.preview.hover(this, null));
  }
}
