/* The tokens as a plain sortable table: an equal path to the figures, in pages so that any length opens. */

const TABLE_ROWS = 100; // per page
const TABLE_COLUMNS = [
  { name: "place", head: "#" },
  { name: "text", head: "token" },
  { name: "penalty", head: "penalty", digits: 2 },
  { name: "reverse_kl", head: "reverse KL", digits: 2 },
  { name: "drop", head: "D", digits: 2 },
  { name: "student_share", head: "student", share: true },
  { name: "teacher_share", head: "teacher", share: true },
  { name: "student_entropy", head: "entropy", digits: 2 },
  { name: "teacher_rank", head: "rank", digits: 0 },
  { name: "verdict", head: "verdict" },
  { name: "fork", head: "fork" },
];

class TokenTable {
  constructor(pane, element) {
    this.pane = pane;
    this.element = element;
    this.sorted = { name: "place", descending: false };
    this.columns = {};
    this.page = 0;
    this.body = make("tbody");
    this.heads = TABLE_COLUMNS.map(({ name, head }) => {
      const cell = make("th", "", makeButton("", head, () => this.sortBy(name)));
      cell.scope = "col";
      return cell;
    });
    const table = make("table", "", make("thead", "", make("tr", "", ...this.heads)), this.body);
    table.createCaption().textContent = "Every token with its figures: penalty, KL and entropy in nats; D from 0 to 1; the teacher’s rank from 1, its first choice. Press a heading to sort.";
    this.where = make("span", "where");
    this.previous = makeButton("", "‹ previous", () => this.turnTo(this.page - 1));
    this.next = makeButton("", "next ›", () => this.turnTo(this.page + 1));
    element.append(make("div", "frame", table), make("p", "pages", this.previous, this.where, this.next));
  }

  /** Bring the table up to the pane, if it is open. */
  async update() {
    const { view, review, group } = this.pane;
    this.element.hidden = !view.tabled;
    if (!view.tabled) return;
    const names = TABLE_COLUMNS.filter((column) => column.digits !== undefined || column.share).map(({ name }) => name);
    const columns = await Promise.all(names.map((name) => view.fetched.column(group, view.sample, name, review)));
    if (this.pane.review !== review) return;
    this.columns = Object.fromEntries(names.map((name, i) => [name, columns[i]]));
    this.arrange();
  }

  sortBy(name) {
    const { sorted } = this;
    // Numbers are wanted largest first, places and texts from the beginning.
    const first = !["place", "text"].includes(name);
    this.sorted = { name, descending: sorted.name === name ? !sorted.descending : first };
    this.page = 0;
    this.arrange();
  }

  valueAt(name, index) {
    const { review, forks } = this.pane;
    if (name === "place") return index;
    if (name === "text") return review.token(index);
    if (name === "verdict") return review.judged ? review.verdicts[index] : undefined;
    if (name === "fork") return forks.indexOf(index) + 1;
    return this.columns[name]?.[index];
  }

  arrange() {
    const { name, descending } = this.sorted;
    this.order = Uint32Array.from({ length: this.pane.review.count }, (_, index) => index);
    const keys = Array.from(this.order, (index) => this.valueAt(name, index));
    const compare = name === "text" ? (a, b) => keys[a].localeCompare(keys[b]) : (a, b) => keys[a] - keys[b];
    this.order.sort((a, b) => (descending ? compare(b, a) : compare(a, b)) || a - b);
    TABLE_COLUMNS.forEach((column, i) => {
      if (column.name === name) this.heads[i].ariaSort = descending ? "descending" : "ascending";
      else this.heads[i].removeAttribute("aria-sort");
    });
    this.turnTo(this.page);
  }

  turnTo(page) {
    const pages = Math.max(1, Math.ceil(this.order.length / TABLE_ROWS));
    this.page = Math.max(0, Math.min(page, pages - 1));
    const first = this.page * TABLE_ROWS;
    const shown = [...this.order.slice(first, first + TABLE_ROWS)];
    this.body.replaceChildren(...shown.map((index) => this.row(index)));
    this.where.textContent = `rows ${first + 1} to ${first + shown.length} of ${this.order.length.toLocaleString("en")}`;
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page === pages - 1;
    this.markPinned();
  }

  row(index) {
    const { view } = this.pane;
    const cells = TABLE_COLUMNS.map((column) => make("td", column.name, this.cell(column, index, view)));
    const row = make("tr", "", ...cells);
    row.dataset.index = index;
    return row;
  }

  cell({ name, digits, share }, index, view) {
    const { review } = this.pane;
    const value = this.valueAt(name, index);
    if (name === "place") {
      const button = makeButton("", String(index + 1), () => view.pin(this.pane, index));
      button.ariaLabel = `Show token ${index + 1}`;
      return button;
    }
    if (name === "text") return make("code", review.isUngraded(index) ? "ungraded" : "", label(value, 40));
    if (name === "verdict" && value !== undefined) {
      const verdict = view.legend.verdicts[value];
      return `${verdict.name} ${verdict.glyph}`.trim();
    }
    if (name === "fork") return value ? `◆ ${value}` : "";
    if (value === undefined || Number.isNaN(value)) return "–";
    return share ? percent(value) : number(value, digits);
  }

  markPinned() {
    const pinned = this.pane.view.pinnedIndex(this.pane);
    for (const row of this.body.rows) row.classList.toggle("cursor", Number(row.dataset.index) === pinned);
  }
}
