/* The course of a quiz: its states, what leads from one to the next, and the score. */

import { countRight } from "./questions.js";

/** State by state, where each move leads; a move that is not here does nothing. */
const MOVES = {
  closed: { open: "looking" },
  looking: { deal: "asking", giveUp: "empty" },
  empty: {},
  asking: { answer: "answered" },
  answered: { next: "asking", end: "over" },
  over: {},
};

export class Game {
  state = "closed";
  questions = [];
  at = 0;
  answers = []; // { right, student: whether it was }
  streak = 0;
  chosen = null;

  /** Make a move; whether there is such a one from here. */
  go(move) {
    const state = MOVES[this.state][move];
    if (state) this.state = state;
    return state !== undefined;
  }

  get question() {
    return ["asking", "answered"].includes(this.state) ? this.questions[this.at] : null;
  }

  /** Begin to ask; where there are no questions, that is all. */
  deal(questions) {
    if (!this.go(questions.length ? "deal" : "giveUp")) return;
    Object.assign(this, { questions, at: 0, answers: [], streak: 0, chosen: null });
  }

  /** Choose an option by its place; whether there is one, and none was chosen before. */
  choose(place) {
    const option = this.question?.options[place];
    if (!option || !this.go("answer")) return false;
    this.chosen = option;
    this.answers.push({ right: option.right, student: this.question.said.right });
    this.streak = option.right ? this.streak + 1 : 0;
    return true;
  }

  get isLast() {
    return this.at + 1 === this.questions.length;
  }

  next() {
    if (!this.go(this.isLast ? "end" : "next")) return;
    if (this.state === "asking") this.at += 1;
    this.chosen = null;
  }

  /** How many answers were right, and how many choices of the student; what picking blindly finds on average. */
  get score() {
    const byChance = this.questions.reduce((sum, { options }) => sum + countRight(options) / options.length, 0);
    return { mine: countRight(this.answers), students: this.answers.filter(({ student }) => student).length, byChance };
  }
}
