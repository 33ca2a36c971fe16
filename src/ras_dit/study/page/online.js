"use strict";

// Answers go to the server at once; what it has not acknowledged is kept here and sent again.
async function createBackend(onStatus) {
  const description = await patiently("api/study", {}, onStatus);
  const place = `ras-dit-study-${description.study}`;
  // Without storage (some private windows) everything works until the page is closed.
  let state = { participant: null, pending: {} };
  try {
    state = JSON.parse(localStorage.getItem(place)) || state;
  } catch { /* start anew */ }
  let sending = false;

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch { /* nothing to be done */ }
  }

  function authorised(options = {}) {
    return { ...options, headers: { ...options.headers, Authorization: `Bearer ${state.participant}` } };
  }

  function json(method, body) {
    return { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  }

  async function send() {
    if (sending) return;
    sending = true;
    let sent = 0;
    try {
      for (;;) {
        const position = Object.keys(state.pending)[0];
        if (position === undefined) break;
        const choice = state.pending[position];
        onStatus("saving");
        await patiently(`api/answers/${position}`, authorised(json("PUT", { choice })), onStatus);
        // Changed while it was under way: it goes once more.
        if (state.pending[position] === choice) delete state.pending[position];
        keep();
        sent += 1;
      }
      if (sent) onStatus("saved");
    } catch {
      onStatus("lost");
    } finally {
      sending = false;
    }
  }

  async function session() {
    const found = await patiently("api/session", authorised(), onStatus);
    for (const question of found.questions) {
      question.left = `images/${question.left}`;
      question.right = `images/${question.right}`;
    }
    Object.assign(found.answers, state.pending);
    send();
    return found;
  }

  return {
    description,
    offline: false,
    async resume() {
      if (!state.participant) return null;
      try {
        return await session();
      } catch {
        // The study was set up anew: nobody knows this participant any more.
        this.forget();
        return null;
      }
    },
    async start(code) {
      const body = description.code === "none" ? {} : { code };
      state = { participant: (await patiently("api/participants", json("POST", body), onStatus)).participant, pending: {} };
      keep();
      return session();
    },
    save(position, choice) {
      state.pending[position] = choice;
      keep();
      send();
    },
    unsaved: () => Object.keys(state.pending).length > 0,
    forget() {
      state = { participant: null, pending: {} };
      keep();
    },
  };
}

class Refusal extends Error {}

// The answer to a request, however long the server is away; an error only if it refuses.
async function patiently(address, options, onStatus) {
  for (;;) {
    let seconds = 2;
    try {
      const response = await fetch(address, { ...options, cache: "no-store", credentials: "omit" });
      if (response.ok) return await response.json();
      if (response.status < 500 && response.status !== 429 && response.status !== 408) {
        const { error } = await response.json().catch(() => ({}));
        throw new Refusal(error || "The server refused the request.");
      }
      seconds = Math.min(30, Number(response.headers.get("Retry-After")) || seconds);
    } catch (error) {
      if (error instanceof Refusal) throw error;
    }
    onStatus("waiting");
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
  }
}
