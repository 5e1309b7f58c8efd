// Gradio's side of the component: `element`, `props`, `server` and `watch` are given to this script.
const view = new ReviewView(element.querySelector(".opd-review"), {
  legend: props.legend,
  // A server function that fails resolves to undefined.
  alternatives: async (...address) => (await server.alternatives_at(...address)) ?? null,
});

function showValue() {
  if (props.value) view.show(JSON.parse(props.value));
}

watch("value", showValue);
showValue();
