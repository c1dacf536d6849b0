// A clip that is dropped on PNG Info or on a prompt: the host reads pictures alone, so it is given the clip's first frame
// as a PNG that carries the clip's text.

const zs2Clips = /\.(mp4|m4v|mov|mkv|webm|avi|webp|apng)$/i;

function zs2IsClip(file) {
    return file.type.startsWith('video/') || ['image/webp', 'image/apng'].includes(file.type) || zs2Clips.test(file.name);
}

// Where a file that is dropped at `element` goes: an element of the host with a file input, or nothing of ours.
function zs2Target(element) {
    const image = element?.closest?.('#pnginfo_image');
    if (image) return image;
    if (typeof dragDropTargetIsPrompt !== 'function' || !dragDropTargetIsPrompt(element)) return null;
    const tab = element.closest('#tab_img2img') ? 'img2img' : 'txt2img';
    return gradioApp().getElementById(`${tab}_prompt_image`);
}

function zs2Notice(text) {
    document.getElementById('zs2_notice')?.remove();
    const notice = zs2Element('div', {id: 'zs2_notice', role: 'alert', onclick: () => notice.remove()}, text);
    document.body.append(notice);
    setTimeout(() => notice.remove(), 12000);
}

async function zs2Still(clip) {
    const answer = await zs2Ask('still', {
        method: 'POST',
        body: clip,
        headers: {'Content-Type': 'application/octet-stream'},
    });
    return new File([await answer.blob()], clip.name.replace(/\.[^.]*$/, '') + '.png', {type: 'image/png'});
}

function zs2Give(target, still) {
    const files = new DataTransfer();
    files.items.add(still);
    const input = target.querySelector('input[type="file"]');
    if (input) {
        input.files = files.files;
        input.dispatchEvent(new Event('change', {bubbles: true}));
    } else { // it shows a picture: the host takes that away first
        dropReplaceImage(target.querySelector('[data-testid="image"]') || target, files.files);
    }
}

document.addEventListener('drop', async event => {
    const clip = event.dataTransfer?.files?.[0];
    const target = clip && zs2IsClip(clip) && zs2Target(event.composedPath()[0]);
    if (!target) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    try {
        zs2Give(target, await zs2Still(clip));
    } catch (error) {
        zs2Notice(`ZS²: ${clip.name}: ${error.message}`);
    }
}, true);

document.addEventListener('dragover', event => {
    if (event.dataTransfer?.types?.includes('Files') && zs2Target(event.composedPath()[0])) event.preventDefault();
}, true);
