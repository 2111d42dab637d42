// FFCV includes <opencv2/opencv.hpp>, which includes every module of OpenCV. It uses these two.
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
