/*
 * Tokens together: words, sentences, steps of reasoning (lines). Penalties and divergences of a unit add up,
 * entropies average, of ranks and verdicts the worst counts.
 */

export const UNITS = {
  token: "each token by itself",
  word: "letters and digits that stand together",
  sentence: "up to a full stop, a question or exclamation mark, or the end of a line",
  step: "a step of reasoning: one line of the text",
};

const WORD_ENDS = /[\p{L}\p{N}\p{M}'’_]$/u;
const WORD_GOES_ON = /^[\p{L}\p{N}\p{M}'’_]/u;
const SENTENCE_ENDS = /[.!?…]["'”’)\]*]*$|[。！？]$/;
const BLANK_NEXT = /^[\s↵]/;

const BOUNDARY = {
  word: (token, next) => !(WORD_ENDS.test(token) && WORD_GOES_ON.test(next)),
  sentence: (token, next) =>
    token.includes("\n") || (SENTENCE_ENDS.test(token) && (BLANK_NEXT.test(next) || /[。！？]$/.test(token))),
  step: (token) => token.includes("\n"),
};

/** The units of a text: `first` token of each (and the end), and the unit `of` each token. */
export function unitsOf(text, granularity) {
  const ends = BOUNDARY[granularity] ?? (() => true);
  const first = [];
  const of = new Uint32Array(text.count);
  let token = "";
  for (let i = 0; i < text.count; i++) {
    const next = text.token(i);
    if (i === 0 || ends(token, next)) first.push(i);
    of[i] = first.length - 1;
    token = next;
  }
  return { count: first.length, first: [...first, text.count], of };
}

const COMBINERS = {
  sum: (values) => values.reduce((sum, value) => sum + value),
  mean: (values) => COMBINERS.sum(values) / values.length,
  max: (values) => values.reduce((most, value) => Math.max(most, value)),
};

/** One value per unit, of what is known of it; NaN where nothing is. */
export function combine(values, units, how) {
  if (units.count === values.length) return values;
  return Float32Array.from({ length: units.count }, (_, u) => {
    const known = values.subarray(units.first[u], units.first[u + 1]).filter((value) => !Number.isNaN(value));
    return known.length ? COMBINERS[how](known) : NaN;
  });
}
