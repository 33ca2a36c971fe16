"use strict";

const byId = (id) => document.getElementById(id);
const statusTexts = {
  saving: "Saving …",
  saved: "Saved",
  kept: "This browser cannot store answers: keep the page open until you have saved the file.",
  waiting: "Not saved yet: no connection. Trying again …",
  lost: "Not saved: the study does not know you any more. Please reload the page.",
};

async function main() {
  let session = null;
  let shown = 0;
  const backend = await createBackend(showStatus);
  const zoom = createZoom();
  const radios = [...document.querySelectorAll('input[name="choice"]')];

  function showStatus(state) {
    const status = byId("status");
    status.textContent = statusTexts[state];
    status.classList.toggle("late", ["waiting", "lost", "kept"].includes(state));
    if (state === "saved" && !byId("done").hidden) showDone();
    byId("start-error").textContent = state === "waiting" && !session ? "No connection. Trying again …" : "";
  }

  function showView(name) {
    for (const view of ["welcome", "question", "done"]) byId(view).hidden = view !== name;
    window.scrollTo(0, 0);
  }

  function showWelcome() {
    const { title, consent, code } = backend.description;
    document.title = title;
    byId("title").textContent = title;
    byId("consent").replaceChildren(...consent.map((text) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = text;
      return paragraph;
    }));
    byId("code-field").hidden = code === "none";
    byId("code-label").textContent = code === "personal" ? "Your personal code" : "Access code";
    showView("welcome");
  }

  const count = () => session.questions.length;
  const answered = () => Object.keys(session.answers).length;
  const firstOpen = () => session.questions.findIndex((_, index) => !(index + 1 in session.answers)) + 1;

  // The address says which question is shown, so that the browser's own back button works too.
  // The question changes at once, not with an event later: the next key may follow at once too.
  function go(place) {
    if (location.hash !== `#${place}`) history.pushState(null, "", `#${place}`);
    route();
  }

  function route() {
    if (!session) return showWelcome();
    if (zoom.isOpen()) zoom.close();
    const place = location.hash.slice(1);
    if (place === "done" && !firstOpen()) return showDone();
    const number = Number(place);
    const last = firstOpen() || count();
    // Later questions than the first open one can be reached by answering only.
    showQuestion(Number.isInteger(number) && number >= 1 ? Math.min(number, last) : last);
  }

  function showQuestion(number) {
    shown = number;
    const question = session.questions[number - 1];
    byId("position").textContent = `Question ${number} of ${count()}`;
    byId("prompt").textContent = question.prompt;
    byId("left").src = question.left;
    byId("right").src = question.right;
    for (const radio of radios) radio.checked = Number(radio.value) === session.answers[number];
    byId("back").disabled = number === 1;
    byId("next").textContent = number === count() ? "Finish" : "Next →";
    byId("question-error").textContent = "";
    showProgress();
    showView("question");
    fit();
    byId("prompt").focus({ preventScroll: true });
    const following = session.questions[number];
    if (following) for (const side of ["left", "right"]) new Image().src = following[side];
  }

  function showProgress() {
    byId("progress").max = count();
    byId("progress").value = answered();
  }

  // The largest pictures with which the whole question still fits on the screen.
  function fit() {
    const pair = document.querySelector(".pair");
    const figures = [...pair.children];
    const image = byId("left");
    if (byId("question").hidden || !image.naturalWidth) return;
    const gap = parseFloat(getComputedStyle(pair).columnGap);
    const widest = (byId("question").clientWidth - 40 - gap) / 2;
    for (const figure of figures) figure.style.width = "0";
    const rest = byId("question").scrollHeight - pair.clientHeight + figures[0].lastElementChild.offsetHeight;
    const room = Math.max(window.innerHeight - rest - 12, 140);
    const wide = window.innerWidth > 720 ? Math.min(widest, room * image.naturalWidth / image.naturalHeight) : widest + 20;
    for (const figure of figures) figure.style.width = `${wide}px`;
  }

  function showDone() {
    const text = backend.unsaved()
      ? "Your last answers are not stored yet. Please keep this page open."
      : `All ${count()} answers are stored. You may close this page, or go back and change them.`;
    byId("done-text").textContent = backend.offline ? `You answered all ${count()} questions.` : text;
    byId("hand-in").hidden = !backend.offline;
    if (backend.offline) backend.handIn(byId("download"), byId("copy"));
    showView("done");
    byId("done-title").focus({ preventScroll: true });
  }

  function answer(choice) {
    session.answers[shown] = choice;
    for (const radio of radios) radio.checked = Number(radio.value) === choice;
    byId("question-error").textContent = "";
    showProgress();
    backend.save(shown, choice);
  }

  function next() {
    if (!(shown in session.answers)) {
      byId("question-error").textContent = "Please choose one of the five answers first.";
      return;
    }
    go(shown === count() ? firstOpen() || "done" : shown + 1);
  }

  function back() {
    if (shown > 1) go(shown - 1);
  }

  function enlarge() {
    const question = session.questions[shown - 1];
    zoom.open(question.left, question.right);
  }

  async function start(event) {
    event.preventDefault();
    const error = byId("start-error");
    error.textContent = "";
    if (!byId("code-field").hidden && !byId("code").value.trim()) {
      error.textContent = "Please type the code that you were given.";
      byId("code").focus();
      return;
    }
    if (!byId("agree").checked) {
      error.textContent = "Please tick the box if you want to take part.";
      byId("agree").focus();
      return;
    }
    byId("start").disabled = true;
    try {
      session = await backend.start(byId("code").value);
      go(firstOpen() || "done");
    } catch (refusal) {
      error.textContent = `Sorry: ${refusal.message}.`;
    } finally {
      byId("start").disabled = false;
    }
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (zoom.isOpen()) return zoom.key(event);
    if (!byId("done").hidden && event.key === "ArrowLeft") return go(count());
    if (byId("question").hidden) return;
    // Enter on a focused button is a click on that button.
    const onButton = document.activeElement instanceof HTMLButtonElement;
    const actions = { ArrowLeft: back, ArrowRight: next, z: enlarge, Z: enlarge };
    if (!onButton) actions.Enter = next;
    if (/^[1-5]$/.test(event.key)) answer(Number(event.key));
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  }

  byId("start-form").addEventListener("submit", start);
  for (const radio of radios) radio.addEventListener("change", () => answer(Number(radio.value)));
  for (const picture of document.querySelectorAll(".picture")) picture.addEventListener("click", enlarge);
  byId("left").addEventListener("load", fit);
  window.addEventListener("resize", fit);
  byId("enlarge").addEventListener("click", enlarge);
  byId("next").addEventListener("click", next);
  byId("back").addEventListener("click", back);
  byId("review").addEventListener("click", () => go(count()));
  byId("another").addEventListener("click", () => {
    backend.forget();
    session = null;
    byId("agree").checked = false;
    byId("code").value = "";
    go("");
    showWelcome();
  });
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", route);
  window.addEventListener("beforeunload", (event) => {
    if (backend.unsaved()) event.preventDefault();
  });

  session = await backend.resume();
  route();
}

main();
