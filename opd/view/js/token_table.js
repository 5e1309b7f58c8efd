/* The tokens as a plain table: an equal path to the figures. */

import { make } from "./dom.js";
import { SortableTable, rowButton } from "./table.js";
import { figure, label, shareWords } from "./words.js";

const CAPTION =
  "Every token with its figures: penalty, KL and entropy in nats; blame from 0 to 1; the teacher’s rank from 1, its first " +
  "choice. Press a heading to sort.";
/** @type {[string, string, (value: number) => string][]} */
const COLUMNS = [
  ["penalty", "penalty", (value) => figure(value)],
  ["reverse_kl", "reverse KL", (value) => figure(value)],
  ["blame", "blame", (value) => figure(value)],
  ["student_share", "student", shareWords],
  ["teacher_share", "teacher", shareWords],
  ["student_entropy", "entropy", (value) => figure(value)],
  ["teacher_rank", "rank", (value) => figure(value, 0)],
];

/** The table of a pane; a row is the place of a token. */
export class TokenTable {
  constructor(pane, element) {
    this.pane = pane;
    this.element = element;
    this.figures = {};
    const verdictAt = (index) => (pane.review.judged ? pane.review.verdicts[index] : null);
    const forkAt = (index) => pane.forks.indexOf(index) + 1;
    const columns = [
      { name: "place", head: "#", rising: true, value: (index) => index, cell: (index) => rowButton(String(index + 1), `Show token ${index + 1}`) },
      {
        name: "piece", head: "token", words: true, rising: true,
        value: (index) => pane.review.token(index),
        cell: (index) => make("code", pane.review.isUngraded(index) ? "ungraded" : "", label(pane.review.token(index), 40)),
      },
      ...COLUMNS.map(([name, head, write]) => ({
        name, head, value: (index) => this.figures[name]?.[index], cell: (index) => write(this.figures[name]?.[index]),
      })),
      {
        name: "judged", head: "verdict", words: true, value: verdictAt,
        cell: (index) => (pane.review.judged ? pane.view.verdictWords(verdictAt(index)) : "–"),
      },
      { name: "forked", head: "fork", words: true, value: forkAt, cell: (index) => (forkAt(index) ? `◆ ${forkAt(index)}` : "") },
    ];
    this.table = new SortableTable(element, columns, {
      act: (index) => pane.view.pin(pane, index),
      dress: (row, index) => (row.dataset.index = index),
      caption: CAPTION,
    });
  }

  /** Bring the table up to the pane, if it is open. */
  async update() {
    const { view, review, group } = this.pane;
    this.element.hidden = !view.tabled;
    if (!view.tabled) return;
    const columns = await Promise.all(COLUMNS.map(([name]) => view.fetched.column(group, view.sample, name, review)));
    if (this.pane.review !== review) return;
    this.figures = Object.fromEntries(COLUMNS.map(([name], i) => [name, columns[i]]));
    this.table.show([...Array(review.count).keys()]);
  }

  markPinned() {
    const pinned = this.pane.view.pinnedIndex(this.pane);
    this.table.mark((index) => index === pinned);
  }
}
