/** plotly comes from our own server, once a page, and only when a plot is to be drawn: it is large. */
function loadPlotly(address) {
  window.opdPlotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    Object.assign(script, { src: address, onload: resolve, onerror: reject });
    document.head.append(script);
  }).catch((error) => {
    delete window.opdPlotly; // so that the next time may be luckier
    throw error;
  });
  return window.opdPlotly;
}
