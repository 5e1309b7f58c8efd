// Gradio's side of the component: `element`, `props`, `server`, `trigger` and `watch` are given to this script.
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
  },
  actions: Object.fromEntries(
    Object.entries(EVENTS)
      .filter(([, event]) => props.actions.includes(event))
      .map(([action, event]) => [action, (data) => trigger(event, data)]),
  ),
  onState: props.linked ? writeFragment : undefined,
});
if (props.linked) view.restore(readFragment()); // waits for the first value

function showValue() {
  if (props.value) view.show(JSON.parse(props.value));
}

watch("value", showValue);
showValue();
