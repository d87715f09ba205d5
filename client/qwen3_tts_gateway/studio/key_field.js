// The field for the gateway's API key. It appears when the gateway has refused a call without a known one.
import { getJson, setKey } from "./api.js";

const element = (id) => document.getElementById(id);

export function watchKey() {
  addEventListener("keyneeded", () => {
    if (!element("key-form").hidden) return;
    element("key-form").hidden = false;
    element("key").focus();
  });
  element("key-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    setKey(element("key").value.trim());
    let problem = "";
    try {
      await getJson("v1/studio/status");
    } catch (error) {
      problem = error.status === 401 ? "The gateway does not know this key." : error.message;
    }
    element("key-error").textContent = problem;
    element("key-error").hidden = !problem;
    if (problem) return;
    element("key-form").hidden = true;
    element("key").value = "";
    dispatchEvent(new Event("keychange"));
  });
}
