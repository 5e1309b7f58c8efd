/* Gradio's side of the component. */

import { readFragment, writeFragment } from "../view/fragment.js";
import { answerWords, textWords } from "../view/js/verdicts.js";
import { ReviewView } from "../view/js/view.js";
import { counted } from "../view/js/words.js";

// Every event is named here in quotes: that is how Gradio knows which listeners Python may add.
const EVENTS = {
  branch: "branch",
  typed: "typed",
  teacherLine: "teacher_line",
  forkValue: "fork_value",
  noReturn: "no_return",
};

const view = new ReviewView(element.querySelector(".opd-review"), {
  legend: props.legend,
  // A server function that fails resolves to undefined.
  source: {
    columns: async (...address) => (await server.column_of(...address)) ?? null,
    alternatives: async (...address) => (await server.alternatives_at(...address)) ?? null,
    prompt: async (...address) => (await server.prompt_of(...address)) ?? null,
  },
  actions: Object.fromEntries(
    Object.entries(EVENTS)
      .filter(([, event]) => props.actions.includes(event))
      .map(([action, event]) => [action, (data) => trigger(event, data)]),
  ),
  onState: props.linked ? writeFragment : undefined,
});
if (props.linked) view.restore(readFragment()); // waits for the first value

/** Say to the page what is shown: others list its trajectories (opd/ui/corpus.js). */
function announceShown() {
  const reviews = view.groups.flatMap((group) => group.reviews);
  const tokens = reviews.reduce((sum, { ownFrom, ownTo }) => sum + ownTo - ownFrom, 0);
  const detail = {
    key: view.key,
    growing: view.growing,
    labels: view.groups.map((group) => group.label),
    reviews: reviews.length,
    words: [...textWords(reviews), ...answerWords([reviews]), counted(tokens, "token")].join(", "),
  };
  if (reviews.length && props.linked) document.dispatchEvent(new CustomEvent("opd-shown", { detail }));
}

/** Go where another part of the page points: { key, group, sample, token }, token null for the whole trajectory. */
function openPlace({ detail: { key, ...place } }) {
  if (!props.linked || key !== view.key || !element.isConnected) return;
  view.restore({ ...view.state(), ...place });
  const text = view.panes.find(({ group }) => group === place.group)?.text;
  text?.scrollIntoView({ block: "center" });
  text?.focus({ preventScroll: true });
}

function showValue() {
  if (!props.value) return;
  view.show(JSON.parse(props.value));
  announceShown();
}

document.addEventListener("opd-ask", announceShown);
document.addEventListener("opd-open", (event) => openPlace(/** @type {CustomEvent} */ (event)));
watch("value", showValue);
showValue();
