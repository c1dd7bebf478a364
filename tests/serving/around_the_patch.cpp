// What the patch's function stands on in llama.cpp: features of a window that is padded to 30 s, here numbers that tell their place.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
struct mtmd_audio_mel { int64_t n_len; int64_t n_mel; std::vector<float> data; };
struct clip_hparams {
    int32_t audio_chunk_len = 30, audio_sample_rate = 16000, audio_hop_len = 160, audio_trailing_silence;
    bool audio_pad_to_window;
};
struct mtmd_audio_preprocessor_whisper {
    clip_hparams hparams;
    bool preprocess(const float *, size_t, std::vector<mtmd_audio_mel> & output) const {
        mtmd_audio_mel mel{3000, 2, std::vector<float>(6000)};
        for (int i = 0; i < 6000; i++) mel.data[i] = i % 3000 + 10000 * (i / 3000);
        output.push_back(mel);
        return true;
    }
};
struct mtmd_audio_preprocessor_falcon3_audio : mtmd_audio_preprocessor_whisper {
    bool preprocess(const float * samples, size_t n_samples, std::vector<mtmd_audio_mel> & output) const;
};
// FUNCTION
int main(int, char ** given) {
    mtmd_audio_preprocessor_falcon3_audio made;
    made.hparams.audio_trailing_silence = atoi(given[1]);
    made.hparams.audio_pad_to_window = atoi(given[2]);
    std::vector<float> samples(atoi(given[3]));
    std::vector<mtmd_audio_mel> mels;
    if (!made.preprocess(samples.data(), samples.size(), mels)) return 1;
    for (const auto & mel : mels) {
        for (int64_t i = 0; i < mel.n_len; i++)
            if (mel.data[i] != i || mel.data[mel.n_len + i] != 10000 + i) return 2;
        printf("%d\n", (int) mel.n_len);
    }
}
