/* One trajectory: its report, its text, its minimap and its graph. */

const BLOCK_TOKENS = 192; // per block of text that the browser may skip while it is out of sight
const LARGEST_BLOCK = 1500; // a text without line breaks is broken here
const LETTER_WIDTH = 0.6; // of the monospaced letter, in em: to guess the height of what is not laid out
const GOES_ALONG = 0.8; // agreement: from here on the teacher may be said to go along with a text
const FINISH = { stop: "ended by itself", length: "cut off by the length limit" };

// Everything that decides a token's classes, packed into one number; only changed numbers touch the page.
const LEVEL_SHIFT = 3;
const RAMP_SHIFT = 6;
const FORK = 1 << 8;
const SIGN = 1 << 9;
const SPECIAL = 1 << 10;
const BEFORE = 1 << 11;
const HIT = 1 << 12;
const CURSOR = 1 << 13;
const BLANK = 1 << 14;
const UNGRADED = 1 << 15;
const MARKS = [
  [FORK, "fork"],
  [SPECIAL, "special"],
  [BEFORE, "before"],
  [HIT, "hit"],
  [CURSOR, "cursor"],
  [BLANK, "blank"],
  [UNGRADED, "ungraded"],
];

class Pane {
  constructor(view, group, fragment) {
    this.view = view;
    this.group = group;
    this.element = fragment.firstElementChild;
    const find = (selector) => this.element.querySelector(selector);
    this.title = find(".pane-title");
    this.report = find(".report");
    this.note = find(".note");
    this.page = find(".page");
    this.text = find(".text");
    this.minimap = find(".minimap");
    this.canvas = find(".graph canvas");
    this.caption = find(".caption");
    this.table = new TokenTable(this, find(".table"));
    this.review = null;
    this.lit = null;
    this.clear();
    this.listen();
  }

  /** Show a review; true if it continues the one that is shown, whose painted text then stays in place. */
  show(review, title) {
    const grown = this.review !== null && review.continues(this.review) === this.review.count;
    if (!grown) this.clear();
    this.review = review;
    this.title.textContent = title;
    this.element.dataset.ended = review.finish_reason ?? "";
    this.extendText();
    this.writeNote();
    return grown;
  }

  clear() {
    this.spans = [];
    this.codes = [];
    this.blocks = []; // [{ element, first }]
    this.hits = [];
    this.values = new Float32Array();
    this.signal = null; // that the values are of
    this.text.replaceChildren();
    this.text.scrollTop = 0;
  }

  /** Append the tokens that are not there yet. */
  extendText() {
    const fragment = document.createDocumentFragment();
    const { longestToken } = this.view.legend;
    for (let i = this.spans.length; i < this.review.count; i++) {
      let token = this.review.token(i);
      let block = this.blocks.at(-1);
      const size = block ? i - block.first : 0;
      // A block ends only where a line ends: breaking elsewhere would show.
      if (!block || (size >= BLOCK_TOKENS && this.review.text[this.review.starts[i] - 1] === "\n") || size >= LARGEST_BLOCK) {
        block = { element: make("div", "block"), first: i };
        block.element.role = "presentation";
        this.blocks.push(block);
        fragment.append(block.element);
      }
      // A word's leading space stays unpainted: at the end of a line it would be a sliver of colour. So does the
      // last line break: what follows the token would stand on the next line.
      const [, space, middle, end] = /^( (?=\S))?(.*?)(\n?)$/s.exec(token);
      token = middle;
      const span = make("span", "", token.length > longestToken ? `${clipped(token, longestToken)}…` : token);
      span.role = "option";
      span.index = i;
      this.spans.push(span);
      this.codes.push(-1);
      block.element.append(...[space, span, end].filter(Boolean));
    }
    this.text.append(fragment);
    this.guessHeights();
  }

  /** Tell the browser how tall the blocks that it has not laid out will be: the scroll bar stays true. */
  guessHeights() {
    const { fontSize, lineHeight, paddingLeft, paddingRight } = getComputedStyle(this.text);
    const room = this.text.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
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
      return this.worst[unit] | (level << LEVEL_SHIFT) | (level ? RAMPS.indexOf(ramp(value)) << RAMP_SHIFT : 0);
    });
    const codes = Uint32Array.from(units.of, (unit) => unitCodes[unit]);
    for (let unit = 0; unit < units.count; unit++) {
      if (legend.verdicts[this.worst[unit]].glyph) codes[units.first[unit + 1] - 1] |= SIGN;
    }
    for (const index of this.forks) codes[index] |= FORK;
    for (const { first, last } of this.hits) for (let i = first; i <= last; i++) codes[i] |= HIT;
    const pinned = view.pinnedIndex(this);
    if (pinned !== null) codes[pinned] |= CURSOR;
    const before = review.branch?.at ?? 0;
    for (let i = 0; i < codes.length; i++) {
      let code = codes[i];
      if (review.isSpecial(i)) code |= SPECIAL;
      if (i < before) code |= BEFORE;
      if (review.isUngraded(i)) code |= UNGRADED;
      if (code === (this.codes[i] & ~BLANK)) continue;
      if (/^[\s↵⇥]*$/.test(review.token(i))) code |= BLANK;
      if (code === this.codes[i]) continue;
      this.codes[i] = code;
      const span = this.spans[i];
      span.className = classNames(code, legend);
      const glyph = code & SIGN ? legend.verdicts[code & FLAG_VERDICT].glyph : "";
      if (glyph) span.dataset.glyph = `\u2060${glyph}`; // the word joiner keeps it on the token's line
      else if (span.dataset.glyph) delete span.dataset.glyph;
    }
    this.element.dataset.signal = this.signal; // what the colours mean by now
    this.fillReport();
    this.fillCaption();
    this.table.update();
    this.draw();
  }

  /** Give the cursor to a token or take it away. */
  mark(index, on) {
    const span = this.spans[index];
    if (!span) return;
    this.codes[index] = on ? this.codes[index] | CURSOR : this.codes[index] & ~CURSOR;
    span.className = classNames(this.codes[index], this.view.legend);
    if (on) {
      span.ariaSelected = "true";
      span.id = `${this.view.name}-cursor`;
      this.text.setAttribute("aria-activedescendant", span.id);
    } else {
      span.removeAttribute("aria-selected");
      span.removeAttribute("id");
      this.text.removeAttribute("aria-activedescendant");
    }
    this.fillCaption();
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

  // -- words around the picture

  writeNote() {
    const { notes, replaced } = this.review;
    const words = [...notes];
    if (replaced) words.push(`${counted(replaced, "token")} cannot be written as text and ${replaced === 1 ? "shows" : "show"} \ufffd.`);
    const { tokens, graded } = this.review.report;
    if (graded < tokens) words.push(`${counted(tokens - graded, "token")} could not be graded: hatched.`);
    this.note.textContent = words.join(" ");
    this.note.hidden = !words.length;
  }

  fillReport() {
    const { report, correct, finish_reason: finish, branch, count } = this.review;
    const names = this.view.verdictNames;
    const own = branch?.by !== "teacher"; // else no figure would be the student's
    const judged = own && this.review.judged;
    const agreement = tally(this.review, names);
    const { counts } = agreement;
    const nats = (value, digits) => (value === null ? "–" : `${number(value, digits)} nats`);
    const entries = [];
    if (correct !== null) entries.push(["answer", correct ? "✓ right" : "✗ wrong", correct ? "right" : "wrong"]);
    if (judged) entries.push(["teacher agrees", agreementWords(agreement), "agreement"]);
    for (const name of judged ? DISAGREEMENTS : []) {
      const glyph = this.view.legend.verdicts[names.indexOf(name)].glyph;
      entries.push([plural(counts[name], name), this.countButton(name, `${counts[name]} ${glyph}`), `is-${name}`]);
    }
    const ifJudged = (...rows) => (judged ? rows : []); // the distributions of two tokenizers are not compared
    if (own) {
      entries.push(
        [plural(this.forks.length, "fork"), this.countButton("fork", `${this.forks.length} ◆`), "is-fork"],
        ["mean penalty", nats(report.mean_penalty)],
        ...ifJudged(["mean reverse KL", nats(report.mean_reverse_kl)], ["total reverse KL", nats(report.total_reverse_kl, 1)]),
        ["mean student entropy", nats(report.mean_student_entropy)],
        ...ifJudged(["top-k overlap", report.overlap === null ? "–" : percent(report.overlap)]),
      );
    }
    const end = finish ? FINISH[finish] : this.view.growing ? "still writing …" : "unfinished";
    entries.push([end, counted(count, "token")]);
    if (this.lit) this.light(null); // the button that lit it goes
    replaceTerms(this.report, entries);
  }

  /** A count: pointing at it lights its tokens, pressing it walks through them. */
  countButton(name, text) {
    const button = makeButton("count", text, () => this.walk(name));
    const light = (lit) => () => this.light(lit ? name : null);
    button.addEventListener("pointerenter", light(true));
    button.addEventListener("pointerleave", light(false));
    button.addEventListener("focus", light(true));
    button.addEventListener("blur", light(false));
    button.title = `Point to light every ${name}, press to walk from one to the next`;
    return button;
  }

  fillCaption() {
    const { view, review } = this;
    const { label: name, unit } = SIGNALS[view.signal];
    const scale = view.signal === "teacher_rank" ? "logarithmic" : "square-root";
    const top = [Number((2 * view.steps.at(-1)).toPrecision(2)).toLocaleString("en"), unit].join(" ").trim();
    const words = [`${name[0].toUpperCase()}${name.slice(1)} per ${view.granularity}, ${scale} scale up to ${top}.`];
    const downstream = this.downstream();
    if (downstream && review.judged) {
      const agreement = tally(review, view.verdictNames, downstream.at + 1);
      const { agreed, choices } = agreement;
      if (choices) {
        const reading =
          agreed >= GOES_ALONG * choices
            ? ": it goes along with what stands there, which is no praise of the ending"
            : 2 * agreed < choices
              ? ": it minds most of what follows too"
              : "";
        words.push(`Downstream of fork ${downstream.fork} the teacher agrees with ${agreementWords(agreement)} ${choices === 1 ? "choice" : "choices"}${reading}.`);
      }
    }
    if (review.evidence?.noReturn) words.push(review.evidence.noReturn.sentence);
    this.caption.textContent = words.join(" ");
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
    if (what === "fork") return (this.codes[index] & FORK) !== 0;
    const name = this.view.verdictNames[this.signs[index]];
    return what === "disagreement" ? DISAGREEMENTS.includes(name) : name === what;
  }

  light(what) {
    this.lit = what;
    if (what) this.text.dataset.lit = what;
    else delete this.text.dataset.lit;
    this.draw();
  }

  walk(what) {
    const from = this.view.pinnedIndex(this) ?? -1;
    for (let away = 1; away <= this.review.count; away++) {
      const index = (from + away) % this.review.count;
      if (this.matches(index, what)) return this.view.pin(this, index);
    }
    return null;
  }

  // -- places

  /** The tokens in sight, by block and then by proportion. */
  window() {
    const { scrollTop, clientHeight } = this.text;
    return { first: this.tokenAtHeight(scrollTop), last: this.tokenAtHeight(scrollTop + clientHeight) };
  }

  tokenAtHeight(y) {
    let low = 0;
    let high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.blocks[middle].element.offsetTop <= y) low = middle;
      else high = middle - 1;
    }
    const block = this.blocks[low];
    if (!block) return 0;
    const share = (y - block.element.offsetTop) / Math.max(1, block.element.offsetHeight);
    const index = block.first + Math.min(1, Math.max(0, share)) * (block.end - block.first);
    return Math.min(this.review.count - 1, Math.floor(index));
  }

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

  /** Scroll the text, and only the text, until the token is in sight. */
  reveal(index, { centre = false } = {}) {
    if (!this.text.clientHeight) {
      this.revealLater = { index, centre }; // a hidden tab has no layout
      return;
    }
    this.revealLater = null;
    const settle = () => {
      const token = this.spans[index].getBoundingClientRect();
      const box = this.text.getBoundingClientRect();
      const above = token.top - box.top - 24;
      const below = token.bottom - box.bottom + 24;
      const far = above < -box.height || below > box.height;
      if (centre || far) this.text.scrollTop += (token.top + token.bottom - box.top - box.bottom) / 2;
      else if (above < 0) this.text.scrollTop += above;
      else if (below > 0) this.text.scrollTop += below;
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
      if (Math.abs(there.top - here.top) < here.height / 2) continue;
      line ??= there.top;
      if (Math.abs(there.top - line) >= here.height / 2) break;
      const distance = (other) => Math.abs(middle(other) - middle(here));
      if (best === index || distance(there) < distance(box(best))) best = i;
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
      if (event.pointerType !== "touch") view.hover(this, indexOf(event));
    });
    text.addEventListener("pointerleave", () => view.hover(this, null));
    text.addEventListener("click", (event) => {
      if (indexOf(event) !== null) view.pin(this, indexOf(event));
    });
    text.addEventListener("scroll", () => this.draw(), { passive: true });
    text.addEventListener("keydown", (event) => view.press(this, event));

    canvas.addEventListener("pointermove", (event) => view.hover(this, this.indexAt(event.offsetX), event));
    canvas.addEventListener("pointerleave", () => view.hover(this, null));
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
      this.reveal(mapped(event), { centre: true });
    });
    minimap.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) this.reveal(mapped(event), { centre: true });
      else view.hover(this, mapped(event), event);
    });
    minimap.addEventListener("pointerleave", () => view.hover(this, null));
  }
}

const knownClassNames = new Map();

/** The classes that a code stands for. */
function classNames(code, legend) {
  if (!knownClassNames.has(code)) {
    const names = ["token", `is-${legend.verdicts[code & FLAG_VERDICT].name}`];
    const level = (code >> LEVEL_SHIFT) & 7;
    if (level) names.push("heat", `${RAMPS[(code >> RAMP_SHIFT) & 3]}-${level}`);
    for (const [bit, name] of MARKS) if (code & bit) names.push(name);
    knownClassNames.set(code, names.join(" "));
  }
  return knownClassNames.get(code);
}
