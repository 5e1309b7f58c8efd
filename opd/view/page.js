/* The component in a file of its own: all it can ask for is embedded. */

import { readFragment, writeFragment } from "./fragment.js";
import { ReviewView } from "./js/view.js";

const stored = JSON.parse(document.getElementById("reviews").textContent);
const view = new ReviewView(document.querySelector(".opd-review"), {
  legend: stored.legend,
  source: {
    columns: async (_key, group, sample, name) => stored.columns[group]?.[sample]?.[name] ?? null,
    alternatives: async (_key, group, sample, chunk) => stored.alternatives[group]?.[sample]?.[chunk] ?? null,
    prompt: async (_key, group, sample) => stored.prompts[group]?.[sample] ?? null,
  },
  onState: writeFragment,
});
view.show(stored.set);
view.restore(readFragment());
