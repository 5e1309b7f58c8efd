/*
 * What is looked at, in the URL's fragment: #t=137&s=reverse_kl&i=2&g=1. Token, trajectory and group are counted
 * from 1; what is as on a fresh page is left out. Only the browser reads and writes it.
 */

/** The state for ReviewView.restore; whatever the fragment does not say rightly is left out. */
export function readFragment() {
  const said = new URLSearchParams(location.hash.slice(1));
  const place = (name) => (/^[1-9]\d{0,8}$/.test(said.get(name) ?? "") ? Number(said.get(name)) - 1 : undefined);
  return { token: place("t"), signal: said.get("s") ?? undefined, sample: place("i"), group: place("g") };
}

/** Keep the state of ReviewView.state; the rest of the URL and the history stay as they are. */
export function writeFragment({ token, signal, sample, group }) {
  const said = new URLSearchParams();
  if (token !== null) said.set("t", token + 1);
  if (signal !== "penalty") said.set("s", signal);
  if (sample) said.set("i", sample + 1);
  if (group) said.set("g", group + 1);
  const fragment = said.size ? `#${said}` : "";
  if (fragment !== location.hash) {
    history.replaceState(history.state, "", location.pathname + location.search + fragment);
  }
}
