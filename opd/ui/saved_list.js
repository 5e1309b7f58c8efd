/* The saved reviews. */

import { make, partsOf } from "../view/js/dom.js";
import { moment } from "../view/js/words.js";
import { Poll } from "./poll.js";

const POLL_MS = 3000; // another page may save
const root = element.querySelector(".saved-list");
const find = partsOf(root);
const list = find("ul");
const count = find(".count");
let drawn = ""; // what is in the list

function entryOf({ id, heading, saved }) {
  const link = make("a", "", make("span", "", heading), make("time", "", moment(saved)));
  link.href = `?review=${id}`; // to be copied, or opened beside this page
  link.title = heading;
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    count.textContent = "Opening …";
    trigger("open", { review: id });
  });
  return make("li", "", link);
}

function sayWhatItIs() {
  count.textContent = list.childElementCount ? "Saved here" : "What you save is listed here.";
}

/** Read the list; returns when to read it again. */
async function read() {
  const reviews = await server.reviews();
  const fresh = JSON.stringify(reviews);
  if (reviews && fresh !== drawn) {
    list.replaceChildren(...reviews.map(entryOf));
    drawn = fresh;
    sayWhatItIs();
  }
  return POLL_MS;
}

watch("value", sayWhatItIs); // what was opened is open, or refused
new Poll(root, read).start();
