/*
 * The saved reviews. `element`, `trigger`, `server` and `watch` are given to this script by Gradio; curves.js stands before it.
 */
const POLL_MS = 3000; // another page may save
const root = element.querySelector(".saved-list");
const list = root.querySelector("ul");
const count = root.querySelector(".count");
const make = (tag, ...children) => {
  const made = document.createElement(tag);
  made.append(...children); // texts become text nodes
  return made;
};

function entryOf({ id, heading, saved }) {
  const link = make("a", make("span", heading), make("time", new Date(1000 * saved).toLocaleString([], { dateStyle: "short", timeStyle: "short" })));
  link.href = `?review=${id}`; // to be copied, or opened beside this page
  link.title = heading;
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    count.textContent = "Opening …";
    trigger("open", { review: id });
  });
  return make("li", link);
}

function sayWhatItIs() {
  count.textContent = list.childElementCount ? "Saved here" : "What you save is listed here.";
}

/** Read the list; returns when to read it again. */
async function read() {
  const reviews = await server.reviews();
  const drawn = JSON.stringify(reviews);
  if (reviews && drawn !== root.dataset.drawn) {
    list.replaceChildren(...reviews.map(entryOf));
    root.dataset.drawn = drawn;
    sayWhatItIs();
  }
  return POLL_MS;
}

watch("value", sayWhatItIs); // what was opened is open, or refused
new Poll(root, read).start();
