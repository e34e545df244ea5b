// Uploads: the files of a drop, and a form with the progress of its upload.

/**
 * Sends a form and returns the answer as JSON. `started` gets the request, which can be aborted, `progress` the fraction
 * that is uploaded. It uses XMLHttpRequest because fetch does not report the progress of an upload.
 */
export function postForm(url, body, { started, progress, uploaded }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", url);
    request.responseType = "json";
    request.setRequestHeader("Accept", "application/json");
    request.setRequestHeader("Trivium-Interface", "form");
    request.upload.onprogress = (event) => { if (event.lengthComputable && event.loaded < event.total) progress(event.loaded / event.total); };
    request.upload.onload = uploaded;
    request.onload = () => {
      if (request.status >= 200 && request.status < 300 && request.response) resolve(request.response);
      else reject(Object.assign(new Error(request.response?.detail ?? `The server answered ${request.status} without an explanation.`), { status: request.status }));
    };
    request.onerror = () => reject(new Error("The connection to the server broke off before its answer arrived. Your choices are still in the form: try again, and if it fails again, ask whether the server is running."));
    request.onabort = () => reject(new Error("Cancelled."));
    started(request);
    request.send(body);
  });
}

/** The dropped files, and those in the dropped folders. */
export async function filesIn(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(filesInEntry))).flat();
}

async function filesInEntry(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    // readEntries returns at most a hundred entries at a time, and none after the last.
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return found;
    found.push(...(await Promise.all(batch.map(filesInEntry))).flat());
  }
}

/** A size for a reader: "12.5 MB". */
export function formatSize(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} kB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}
