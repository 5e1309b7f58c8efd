/* What a token can be coloured by. */

export const SIGNALS = {
  penalty: {
    label: "penalty",
    formula:
      "log p(student) − log p(teacher) of the sampled token. " +
      "Red: the teacher likes it less than the student does. Blue: more.",
    ramp: (value) => (value < 0 ? "like" : "dislike"),
    signed: true,
  },
  reverse_kl: {
    label: "reverse KL",
    formula:
      "Σ p(student) · log [p(student) / p(teacher)] over the vocabulary: " +
      "how surprised the teacher would be by what the student might say here.",
  },
  forward_kl: {
    label: "forward KL",
    formula:
      "Σ p(teacher) · log [p(teacher) / p(student)] over the vocabulary: " +
      "how surprised the student would be by what the teacher might say here.",
  },
  jsd: {
    label: "JSD",
    formula:
      "½ KL(student ‖ m) + ½ KL(teacher ‖ m) with m the mean of both: " +
      "how far apart the two models are, at most ln 2 = 0.69 nats.",
  },
  student_entropy: {
    label: "student entropy",
    formula: "−Σ p(student) · log p(student): how open the choice was for the student.",
    ramp: () => "open",
    combine: "mean",
  },
  teacher_entropy: {
    label: "teacher entropy",
    formula: "−Σ p(teacher) · log p(teacher): how open the choice was for the teacher.",
    ramp: () => "open",
    combine: "mean",
  },
  teacher_rank: {
    label: "teacher’s rank",
    formula: "Which choice of the teacher the sampled token is: 1 is its first, the likeliest.",
    unit: "",
    combine: "max",
  },
};
for (const [name, signal] of Object.entries(SIGNALS)) {
  SIGNALS[name] = { ramp: () => "dislike", unit: "nats", combine: "sum", ...signal };
}

export const ABSENT = "This review does not hold it: it was graded without.";

/** The value below which this share of the magnitudes lies; 0 where there are none. */
function quantile(arrays, share) {
  const magnitudes = arrays.flatMap((values) => Array.from(values, Math.abs)).filter((value) => value >= 0);
  magnitudes.sort((a, b) => a - b);
  return magnitudes[Math.min(magnitudes.length - 1, Math.floor(share * magnitudes.length))] ?? 0;
}

/**
 * Where the steps of the ramp begin. Fixed, so that any two pictures can be compared; or fitted to what is
 * shown, the last step at its 99th percentile (the maximum would let one token bleach all others).
 */
export function domainOf(signal, legend, fittedTo) {
  const fixed = signal === "teacher_rank" ? legend.rankSteps : legend.steps;
  const least = signal === "teacher_rank" ? 1 : 0; // what has no colour
  const top = fittedTo ? quantile(fittedTo, 0.99) : least;
  if (top <= least) return fixed;
  const stretch = (top - least) / (fixed.at(-1) - least);
  return fixed.map((step) => Number((least + (step - least) * stretch).toPrecision(2)));
}

/** How tall a value stands in the graph, 0 to 1: small values stay visible beside large ones. */
export function tallness(value, signal, steps) {
  const ceiling = 2 * steps[steps.length - 1];
  const share = Math.min(1, Math.abs(value) / ceiling);
  return signal === "teacher_rank" ? Math.log(Math.max(1, share * ceiling)) / Math.log(ceiling) : Math.sqrt(share);
}
