// The component in a file of its own: all it can ask for is embedded.
const stored = JSON.parse(document.getElementById("reviews").textContent);
const view = new ReviewView(document.querySelector(".opd-review"), {
  legend: stored.legend,
  source: {
    columns: async (key, group, sample, name) => stored.columns[group]?.[sample]?.[name] ?? null,
    alternatives: async (key, group, sample, chunk) => stored.alternatives[group]?.[sample]?.[chunk] ?? null,
  },
  onState: writeFragment,
});
view.show(stored.set);
view.restore(readFragment());
