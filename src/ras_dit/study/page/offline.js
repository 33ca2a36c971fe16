"use strict";

// Without a server: answers stay in this browser until they are saved to a file.
const study = JSON.parse(document.getElementById("study-data").textContent);

async function createBackend(onStatus) {
  let code = null;
  let participant = null;
  let shown = [];
  let state = null;

  const place = () => `ras-dit-study-${study.study}-${study.export}-${participant}`;
  const lastCode = `ras-dit-study-${study.study}-${study.export}-code`;

  function read(key) {
    try {
      return localStorage.getItem(key);
    } catch {
      return null;
    }
  }

  function write(key, value) {
    try {
      localStorage.setItem(key, value);
      return true;
    } catch {
      return false;
    }
  }

  function open(typed) {
    // As the codes are written: no I, L, O, because they look like 1, 1, 0.
    code = typed.toUpperCase().replace(/[^0-9A-Z]/g, "").replace(/[IL]/g, "1").replace(/O/g, "0");
    participant = study.codes.indexOf(sha256(`${study.study}/${study.export}/${code}`).slice(0, 32)) + 1;
    if (!participant) throw new Error("this code does not belong to this page");
    shown = assignment(code);
    const kept = JSON.parse(read(place()) || "null");
    state = kept || { answers: {}, revision: 0 };
    const answers = {};
    shown.forEach((question, index) => {
      if (question.id in state.answers) answers[index + 1] = state.answers[question.id];
    });
    const questions = shown.map(({ prompt, left, right }) => (
      { prompt, left: study.images[left], right: study.images[right] }
    ));
    return { questions, answers };
  }

  // The same rule as in assignment.py.
  function assignment(seed) {
    const digest = (purpose, question) => sha256(`${seed}/${purpose}/${question.id}`);
    const keyed = study.questions.map((question) => [digest("order", question), question]);
    keyed.sort(([first], [second]) => (first < second ? -1 : 1));
    return keyed.map(([, question]) => {
      const [first, second] = question.images;
      const swapped = parseInt(digest("side", question)[0], 16) % 2;
      return { ...question, left: swapped ? second : first, right: swapped ? first : second };
    });
  }

  function result() {
    const answers = shown.filter(({ id }) => id in state.answers).map(({ id, left, right }) => (
      { question: id, left, right, choice: state.answers[id] }
    ));
    answers.sort((first, second) => (first.question < second.question ? -1 : 1));
    const lines = [`ras-dit-study-answers/1`, study.study, study.export, participant, state.revision];
    for (const { question, left, right, choice } of answers) lines.push(`${question} ${left} ${right} ${choice}`);
    return JSON.stringify({
      format: "ras-dit-study-answers/1",
      study: study.study,
      export: study.export,
      participant,
      revision: state.revision,
      answers,
      signature: hmacSha256(code, lines.join("\n")),
    }, null, 1);
  }

  return {
    description: { ...study, code: "personal", count: study.questions.length },
    offline: true,
    async resume() {
      const kept = read(lastCode);
      try {
        return kept ? open(kept) : null;
      } catch {
        return null;
      }
    },
    async start(typed) {
      const session = open(typed);
      write(lastCode, code);
      return session;
    },
    save(position, choice) {
      state.answers[shown[position - 1].id] = choice;
      state.revision += 1;
      onStatus(write(place(), JSON.stringify(state)) ? "saved" : "kept");
    },
    // Only what this browser cannot keep is lost when the page is closed.
    unsaved: () => state !== null && state.revision > 0 && read(place()) === null,
    forget: () => write(lastCode, ""),
    handIn(link, copy) {
      const text = result();
      URL.revokeObjectURL(link.href);
      link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      link.download = `answers-${study.study.slice(0, 8)}-${participant}.json`;
      copy.value = text;
    },
  };
}
