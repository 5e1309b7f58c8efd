/* The one table: its headings sort it, and it comes in pages, so that any length opens. */

import { make, makeButton } from "./dom.js";
import { figure, label } from "./words.js";

const ROWS_PER_PAGE = 100;

const isMissing = (value) => value === null || value === undefined || Number.isNaN(value);

/** Compare two values; what is not there comes last either way. */
export function compare(a, b, descending = false) {
  if (isMissing(a) || isMissing(b)) return Number(isMissing(a)) - Number(isMissing(b));
  const way = typeof a === "string" ? a.localeCompare(b) : a - b;
  return descending ? -way : way;
}

/** The sorts, { column, descending }, once a heading is pressed: it comes first, and turns round if it was. */
export function pressHeading(sorts, column) {
  const [last] = sorts;
  const descending = last?.column === column ? !last.descending : !column.rising;
  return [{ column, descending }, ...sorts.filter((sort) => sort.column !== column)];
}

/** Rows in the order of some sorts, the first of which counts most; equal ones stay as they came. */
export function sortRows(rows, sorts) {
  const sorted = [...rows];
  for (const { column, descending } of sorts.toReversed()) {
    const values = new Map(rows.map((row) => [row, column.value(row)]));
    sorted.sort((a, b) => compare(values.get(a), values.get(b), descending));
  }
  return sorted;
}

/**
 * A column is { name, head, value, cell }: what a row is sorted by, and what it shows (a node or a text). words: it is
 * left-aligned; rising: its least value comes first, where others begin with the largest; minor and lesser columns go
 * where there is no room. act(row) is called when a row is pressed, dress(element, row) when it has been made.
 */
export class SortableTable {
  constructor(element, columns, { act = null, dress = null, caption = "" } = {}) {
    this.columns = columns;
    this.act = act;
    this.dress = dress;
    this.sorts = [];
    this.rows = [];
    this.order = [];
    this.hidden = [];
    this.page = 0;
    this.isMarked = (row) => row === this.opened;
    this.opened = null;
    this.heads = columns.map((column) => {
      const cell = make("th", classesOf(column), column.head ? makeButton("", column.head, () => this.sortBy(column)) : "");
      cell.scope = "col";
      return cell;
    });
    this.body = make("tbody");
    const table = make("table", act ? "pressed" : "", make("thead", "", make("tr", "", ...this.heads)), this.body);
    if (caption) table.createCaption().textContent = caption;
    this.frame = make("div", "frame", table);
    this.where = make("span", "where");
    this.previous = makeButton("", "‹ previous", () => this.turnTo(this.page - 1));
    this.next = makeButton("", "next ›", () => this.turnTo(this.page + 1));
    this.pages = make("p", "pages", this.previous, this.where, this.next);
    element.append(this.frame, this.pages);
  }

  show(rows) {
    this.rows = rows;
    this.frame.hidden = !rows.length;
    this.arrange();
  }

  /** Leave columns out, by name. */
  hide(names) {
    this.hidden = names;
    this.columns.forEach(({ name }, i) => (this.heads[i].hidden = names.includes(name)));
  }

  /** Mark the rows of which `isMarked` is true; without, the one that was pressed last. */
  mark(isMarked = this.isMarked) {
    this.isMarked = isMarked;
    [...this.body.rows].forEach((made, i) => made.classList.toggle("marked", isMarked(this.shown[i])));
  }

  sortBy(column) {
    this.sorts = pressHeading(this.sorts, column);
    this.page = 0;
    this.arrange();
  }

  arrange() {
    this.order = sortRows(this.rows, this.sorts);
    this.columns.forEach((column, i) => {
      if (this.sorts[0]?.column !== column) this.heads[i].removeAttribute("aria-sort");
      else this.heads[i].ariaSort = this.sorts[0].descending ? "descending" : "ascending";
    });
    this.turnTo(this.page);
  }

  turnTo(page) {
    const pages = Math.max(1, Math.ceil(this.order.length / ROWS_PER_PAGE));
    this.page = Math.max(0, Math.min(page, pages - 1));
    const first = this.page * ROWS_PER_PAGE;
    this.shown = this.order.slice(first, first + ROWS_PER_PAGE);
    this.body.replaceChildren(...this.shown.map((row) => this.makeRow(row)));
    this.pages.hidden = pages === 1;
    this.where.textContent = `${first + 1} to ${first + this.shown.length} of ${this.order.length.toLocaleString("en")}`;
    this.previous.disabled = this.page === 0;
    this.next.disabled = this.page === pages - 1;
    this.mark();
  }

  makeRow(row) {
    const cells = this.columns.map((column) => {
      const cell = make("td", classesOf(column), column.cell(row));
      cell.hidden = this.hidden.includes(column.name);
      return cell;
    });
    const made = make("tr", "", ...cells);
    this.dress?.(made, row);
    if (this.act) {
      made.addEventListener("click", () => {
        this.opened = row;
        this.act(row);
        this.mark();
      });
    }
    return made;
  }
}

const classesOf = ({ name, words, minor, lesser }) =>
  [name, words && "words", minor && "minor", lesser && "lesser"].filter(Boolean).join(" ");

/** A column of figures that a row has under the column's name. */
export const numeric = (name, head, digits, more = {}) => ({
  name, head, value: (row) => row[name], cell: (row) => figure(row[name], digits), ...more,
});

/** A column of texts that are sorted by the alphabet. */
export const wordy = (name, head, cell, more = {}) => ({
  name, head, words: true, rising: true, value: (row) => row[name], cell: cell ?? ((row) => row[name]), ...more,
});

/** The button of a row for the keyboard; pressing it is pressing its row. */
export function rowButton(text, name) {
  const button = makeButton("", text, () => {});
  button.ariaLabel = name;
  return button;
}

/** A text on one line. */
export const line = (text) => text.replaceAll("\n", "");

/** A token in the middle of its text. */
export const around = ({ left, token, right }) =>
  make("span", "around", make("span", "left", line(left)), make("b", "", label(token, 24)), make("span", "", line(right)));
