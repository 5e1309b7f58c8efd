/*
 * The line beside a button. The value is { ticket } while work is under way, { done, answer } when it is done, null
 * where there is nothing to say.
 */

const POLL_MS = 400;
const QUICK = 3; // seconds that nobody wants counted
const DONE_MS = 10_000; // how long it is said that something is done
const root = element.querySelector(".working");
const words = root.querySelector("span");
let shown = null;

function say(text) {
  words.textContent = text;
  root.hidden = !text;
}

async function follow(mine) {
  const began = Date.now();
  for (let phase = "Working"; shown === mine && root.isConnected; ) {
    const seconds = Math.round((Date.now() - began) / 1000);
    say(`${phase} …${seconds >= QUICK ? ` ${seconds} s` : ""}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    phase = (await server.phase(mine.ticket)) ?? phase; // none when it has just ended
  }
}

function showValue({ anew }) {
  shown = JSON.parse(props.value || "null");
  root.toggleAttribute("data-done", !shown?.ticket);
  if (shown?.ticket) return follow(shown);
  say(shown?.done ?? "");
  const mine = shown;
  setTimeout(() => shown === mine && say(""), DONE_MS);
  if (anew && shown?.answer) scrollTo(shown.answer);
}

/** The answer may arrive an instant after the word that it is there. */
function scrollTo(selector, tries = 20) {
  const answer = document.querySelector(selector);
  if (answer?.offsetParent) answer.scrollIntoView({ behavior: "smooth", block: "start" });
  else if (tries) setTimeout(() => scrollTo(selector, tries - 1), 100);
}

watch("value", () => showValue({ anew: true }));
showValue({ anew: false });
